//! Exactly once under faults. Each fault is first shown to have hit work in flight.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use kit::bucket::{Bucket, oversized_png, picture, truncated_jpeg, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::{Configuration, Worker};
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::distance::distant;
use crate::{Expected, assert_exactly_once};

const REFERENCES: usize = 2_000;
const PICTURES: usize = 300;
pub const PARTITIONS: i32 = 6;
/// One reference in fifty is poison.
const POISON_EVERY: usize = 50;

/// Two workers, one of them killed twice with SIGKILL and started again each time, and one broker
/// of three killed and started again.
#[tokio::test(flavor = "multi_thread")]
async fn two_kills_and_a_broker_restart_lose_and_double_nothing_takes_minutes() {
    let cluster = Cluster::start(3);
    let bucket = Bucket::start();
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let configure = async |name: &str| {
        distant(Configuration::new(name, &cluster, &topics, &bucket), &bucket).await
    };
    let killed = configure("one").await;
    let mut first = killed.start();
    let mut second = configure("two").await.start();
    first.await_ready();
    second.await_ready();

    // References come in waves, so that each fault meets workers at work.
    let mut expected = produce(&cluster, &topics, 0..800).await;
    kill_at_work(&mut first, &cluster, &topics, expected.len());
    let mut first = killed.start();
    first.await_ready();

    let workers = [&first, &second];
    let (more, ()) = tokio::join!(
        produce(&cluster, &topics, 800..1_400),
        kill_broker_at_work(&cluster, &topics, &workers, expected.len()),
    );
    expected.extend(more);
    if cluster.is_ours() {
        cluster.broker("start", 2);
        assert!(cluster.is_listening(2), "the broker is not back");
    }

    expected.extend(produce(&cluster, &topics, 1_400..REFERENCES).await);
    assert_eq!(expected.len(), REFERENCES);
    kill_at_work(&mut first, &cluster, &topics, expected.len());
    let mut first = killed.start();

    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, REFERENCES, Duration::from_secs(180));
    assert_exactly_once(&records, &expected);
    let committed = cluster.committed(&topics.group, &topics.input, PARTITIONS);
    assert_eq!(committed, REFERENCES as i64, "offsets are where the outputs are");
    for worker in [&mut first, &mut second] {
        worker.signal("TERM");
        let status = worker.wait(Duration::from_secs(30));
        assert!(status.success(), "{}", worker.log());
    }
    let after = cluster.read_committed(&both);
    assert_exactly_once(&after, &expected);
}

/// Kills a broker, if it may be killed, while references beyond the `produced` ones arrive and the
/// workers hold some that nobody has committed.
async fn kill_broker_at_work(
    cluster: &Cluster,
    topics: &Topics,
    workers: &[&Worker],
    produced: usize,
) {
    if !cluster.is_ours() {
        return;
    }
    let in_flight =
        || workers.iter().map(|worker| worker.metric("fusioncap_in_flight_references")).sum();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let arrived = cluster.stored(&topics.input, PARTITIONS);
        let held: f64 = in_flight();
        if arrived > produced as i64 && held >= 16.0 {
            break;
        }
        assert!(Instant::now() < deadline, "{arrived} references arrived, {held} in flight");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.broker("kill", 2);
    assert!(!cluster.is_listening(2), "the broker is still there");
    let held: f64 = in_flight();
    assert!(held > 0.0, "the broker died under idle workers");
    println!("killed a broker with {held} references in flight");
}

/// Freezes a busy worker, shows that it holds references which nobody has committed, kills it.
fn kill_at_work(worker: &mut Worker, cluster: &Cluster, topics: &Topics, produced: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let held = loop {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "never at work:\n{}", worker.log());
        let in_flight = worker.metric("fusioncap_in_flight_references");
        if in_flight >= 16.0 && worker.metric("fusioncap_captions_total") >= 20.0 {
            worker.signal("STOP");
            break in_flight;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // The worker is frozen: what the group has committed now is all it will ever have answered.
    let committed = cluster.committed(&topics.group, &topics.input, PARTITIONS);
    assert!(
        committed < produced as i64,
        "the kill hit idle workers: {committed} of {produced} are committed, {held} were in flight"
    );
    println!("killing a worker with {held} references in flight; {committed} are committed");
    worker.kill();
}

/// Puts the pictures, and what is none.
pub fn fill(bucket: &Bucket) {
    for number in 0..PICTURES {
        bucket.put(&format!("{number}.png"), &picture(number as u32));
    }
    bucket.put("empty.jpg", b"");
    bucket.put("page.jpg", b"<html></html>");
    bucket.put("half.jpg", &truncated_jpeg());
    bucket.put("huge.png", &oversized_png());
}

/// Produces the references of `numbers`, poison among them; what must become of each.
pub async fn produce(
    cluster: &Cluster,
    topics: &Topics,
    numbers: Range<usize>,
) -> HashMap<(i32, i64), Expected> {
    let poison = [
        ("no JSON".to_owned(), "invalid_message"),
        (json!({"uri": uri("missing.png")}).to_string(), "object_not_found"),
        (json!({"uri": uri("page.jpg")}).to_string(), "not_an_image"),
        (json!({"uri": uri("half.jpg")}).to_string(), "corrupt_image"),
        (json!({"uri": uri("empty.jpg")}).to_string(), "empty_object"),
        (json!({"uri": uri("huge.png")}).to_string(), "image_too_large"),
    ];
    let producer = cluster.producer();
    let deliveries = numbers.map(|number| {
        let (payload, outcome) = if number % POISON_EVERY == 7 {
            let (payload, code) = &poison[number / POISON_EVERY % poison.len()];
            (payload.clone(), Expected::DeadLetter(code))
        } else {
            let picture = uri(&format!("{}.png", number % PICTURES));
            (json!({"uri": picture}).to_string(), Expected::Caption)
        };
        let (producer, topic) = (producer.clone(), topics.input.clone());
        let partition = number as i32 % PARTITIONS;
        async move {
            let headers = OwnedHeaders::new();
            let offset =
                deliver(&producer, &topic, partition, "k", payload.as_bytes(), headers).await;
            ((partition, offset), outcome)
        }
    });
    futures::future::join_all(deliveries).await.into_iter().collect()
}
