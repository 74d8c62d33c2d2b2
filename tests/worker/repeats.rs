//! Many references to few objects: each object is read once, each reference answered in its own
//! name.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::retries::{Requests, store};
use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);
const OBJECTS: usize = 10;
const REFERENCES: usize = 200;

/// A store that counts: `bad.png` is not an image, `missing.png` is not there.
async fn counting_store() -> (SocketAddr, Requests) {
    store(axum::routing::get(answer)).await
}

async fn answer(State(requests): State<Requests>, Path(key): Path<String>) -> Response {
    *requests.lock().unwrap().entry(key.clone()).or_default() += 1;
    match key.strip_suffix(".png").map(str::parse) {
        Some(Ok(number)) => picture(number).into_response(),
        _ if key == "bad.png" => "no image at all".into_response(),
        _ => {
            let error = "<Error><Code>NoSuchKey</Code></Error>".to_owned();
            (StatusCode::NOT_FOUND, error).into_response()
        }
    }
}

/// References with ids and attributes of their own, to `key(0)`, `key(1)` and so on.
async fn refer(cluster: &Cluster, topics: &Topics, count: usize, key: impl Fn(usize) -> String) {
    let producer = cluster.producer();
    for number in 0..count {
        let message = json!({"uri": uri(&key(number)), "id": format!("id-{number}"),
            "attributes": {"number": number.to_string()}});
        let payload = message.to_string();
        let partition = (number % 2) as i32;
        let headers = OwnedHeaders::new();
        deliver(&producer, &topics.input, partition, "k", payload.as_bytes(), headers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_read_once_for_all_its_references() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    let (store, requests) = counting_store().await;
    refer(&cluster, &topics, REFERENCES, |number| format!("{}.png", number % OBJECTS)).await;
    // Longer than the test may last.
    let worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_store(&bucket, store)
        .without_hedging()
        .replacing("limits:\n", "limits:\n  coalesce_window_ms: 600000\n")
        .start();
    let records = cluster.await_records(&[&topics.output], REFERENCES, PATIENCE);
    assert_eq!(records.len(), REFERENCES);
    let sources: HashSet<_> = records.iter().map(|record| record.source()).collect();
    assert_eq!(sources.len(), REFERENCES, "a reference was answered twice");
    let mut captions: HashMap<&str, &str> = HashMap::new();
    for record in &records {
        let number = record.value["attributes"]["number"].as_str().unwrap();
        assert_eq!(record.text("id"), format!("id-{number}"));
        let number: usize = number.parse().unwrap();
        assert_eq!(record.source(), ((number % 2) as i32, (number / 2) as i64));
        assert_eq!(record.text("uri"), uri(&format!("{}.png", number % OBJECTS)));
        let caption = record.text("caption");
        assert_eq!(*captions.entry(record.text("uri")).or_insert(caption), caption);
    }
    let counts = requests.lock().unwrap().clone();
    assert_eq!(counts.len(), OBJECTS, "{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), OBJECTS, "{counts:?}");
    assert_eq!(
        worker.metric("fusioncap_coalesced_references_total"),
        (REFERENCES - OBJECTS) as f64
    );
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), REFERENCES as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_references_to_a_bad_object_become_dead_letters() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    let (store, requests) = counting_store().await;
    let keys = ["bad.png", "missing.png", "1.png"];
    refer(&cluster, &topics, 90, |number| keys[number % 3].to_owned()).await;
    let worker =
        Configuration::new("one", &cluster, &topics, &bucket).with_store(&bucket, store).start();
    let letters = cluster.await_records(&[&topics.dead_letters], 60, PATIENCE);
    let captions = cluster.await_records(&[&topics.output], 30, PATIENCE);
    assert_eq!((letters.len(), captions.len()), (60, 30));
    let sources: HashSet<_> = letters.iter().map(|letter| letter.source()).collect();
    assert_eq!(sources.len(), 60, "a reference was answered twice");
    for letter in &letters {
        let (partition, offset) = letter.source();
        let number = offset as usize * 2 + partition as usize;
        let code = ["not_an_image", "object_not_found"][number % 3];
        assert_eq!(letter.text("code"), code, "reference {number}");
    }
    // Failures are not remembered, so that a later reference asks again.
    let counts = requests.lock().unwrap().clone();
    assert!(counts["bad.png"] < 30 && counts["missing.png"] < 30, "{counts:?}");
    assert!(worker.metric("fusioncap_coalesced_references_total") >= 30.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_window_each_reference_reads_its_object() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    let (store, requests) = counting_store().await;
    refer(&cluster, &topics, 40, |number| format!("{}.png", number % 4)).await;
    let worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_store(&bucket, store)
        .without_hedging()
        .without_coalescing()
        .start();
    assert_eq!(cluster.await_records(&[&topics.output], 40, PATIENCE).len(), 40);
    assert_eq!(requests.lock().unwrap().values().sum::<usize>(), 40);
    assert_eq!(worker.metric("fusioncap_coalesced_references_total"), 0.0);
}

/// The leader of several references loses its partition while it reads: one that stays takes over,
/// and the partition's new owner answers those that moved.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_takes_over_when_the_leader_moves_to_another_worker() {
    const EACH: usize = 6;
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let answer = move |State(requests): State<Requests>, Path(key): Path<String>| async move {
        *requests.lock().unwrap().entry(key).or_default() += 1;
        // It is never closed.
        let _open = held.acquire().await;
        picture(1)
    };
    let (store, requests) = store(axum::routing::get(answer)).await;
    let produce = async |key: usize, partition: i32, count: usize| {
        let reference = json!({"uri": uri(&format!("{key}.png"))}).to_string();
        for _ in 0..count {
            cluster
                .produce(&topics.input, partition, "k", reference.as_bytes(), OwnedHeaders::new())
                .await;
        }
    };
    let named = |name| {
        Configuration::new(name, &cluster, &topics, &bucket)
            .with_store(&bucket, store)
            .without_hedging()
            .replacing("s3:\n", "s3:\n  timeout_ms: 60000\n")
            .replacing("limits:\n", "limits:\n  coalesce_window_ms: 600000\n")
    };
    let mut first = named("one").start();
    // Each partition has the leader of one object; the others that refer to it are in the other
    // one. Whichever partition moves, a leader goes and leaves them behind.
    for key in 0..2 {
        produce(key, key as i32, 1).await;
    }
    let asked = |times: usize| requests.lock().unwrap().values().sum::<usize>() == times;
    until(|| asked(2)).await;
    for key in 0..2 {
        produce(key, 1 - key as i32, EACH - 1).await;
    }
    until(|| first.metric("fusioncap_in_flight_references") == 2.0 * EACH as f64).await;
    let mut second = named("two").start();
    until(|| second.metric("fusioncap_partitions_assigned") == 1.0).await;
    until(|| first.metric("fusioncap_partitions_assigned") == 1.0).await;
    // The new owner leads for both: one of its own partition's, one of the waiters that came along.
    until(|| asked(4)).await;
    gate.add_permits(1_000);
    let records = cluster.await_records(&[&topics.output], 2 * EACH, PATIENCE);
    let sources: HashSet<_> = records.iter().map(|record| record.source()).collect();
    assert_eq!((records.len(), sources.len()), (2 * EACH, 2 * EACH));
    let mut counts: Vec<usize> = requests.lock().unwrap().values().copied().collect();
    counts.sort_unstable();
    assert_eq!(counts, [2, 3], "one object is read again by who took over");
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), 2 * EACH as i64);
    assert!(first.is_running() && second.is_running());
}

async fn until(is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "it did not come to that");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
