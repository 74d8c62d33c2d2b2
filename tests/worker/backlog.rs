//! The worker's own figures of its delay, which autoscaling uses.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use kit::bucket::{Bucket, picture, uri};
use kit::kafka::deliver;
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::faults::{PARTITIONS, fill, produce};
use crate::fences::await_shares;
use crate::retries::{Requests, store};
use crate::shared_cluster;

const REFERENCES: usize = 600;
const PATIENCE: Duration = Duration::from_secs(90);

/// Objects take a tenth of a second each.
async fn slow_store() -> (SocketAddr, Requests) {
    let answer = |State(_): State<Requests>, Path(_): Path<String>| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        picture(1)
    };
    store(axum::routing::get(answer)).await
}

/// Four objects at once: 40 a second at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_how_far_it_is_behind() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    let (store, _) = slow_store().await;
    let producer = cluster.producer();
    for number in 0..REFERENCES {
        let reference = json!({"uri": uri(&format!("{number}.png"))}).to_string();
        let partition = (number % 2) as i32;
        let (payload, headers) = (reference.as_bytes(), OwnedHeaders::new());
        deliver(&producer, &topics.input, partition, "k", payload, headers).await;
    }
    let worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_store(&bucket, store)
        .replacing("s3:\n", "s3:\n  concurrency: 4\n")
        .replacing("max_in_flight: 128", "max_in_flight: 32")
        .start();
    let messages = || worker.metric("fusioncap_consumer_lag_messages");
    let captions = || worker.metric("fusioncap_captions_total");
    let told = async |is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{} left:\n{}", messages(), worker.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    told(&|| captions() > 150.0 && worker.metric("fusioncap_consumer_lag_seconds") > 0.0).await;
    let (left, seconds) = (messages(), worker.metric("fusioncap_consumer_lag_seconds"));
    assert!((200.0..=500.0).contains(&left), "{left} messages are left of {REFERENCES}");
    let began = Instant::now();
    told(&|| captions() >= REFERENCES as f64).await;
    let took = began.elapsed().as_secs_f64();
    assert!((took / 3.0..took * 3.0).contains(&seconds), "{seconds} were told, it took {took}");
    told(&|| messages() == 0.0).await;
    assert_eq!(worker.metric("fusioncap_consumer_lag_seconds"), 0.0);
}

/// A partition that another worker had in between is as far as that one got.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_back_has_what_others_have_answered() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let configuration = |name| Configuration::new(name, &cluster, &topics, &bucket);
    let first = configuration("one").start();
    // Nothing has been read yet: where each begins is asked for.
    await_shares(&[&first]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut second = configuration("two").start();
    await_shares(&[&first, &second]).await;
    let expected = produce(&cluster, &topics, 0..300).await;
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    cluster.await_records(&both, expected.len(), PATIENCE);
    second.signal("TERM");
    assert!(second.wait(PATIENCE).success(), "{}", second.log());
    await_shares(&[&first]).await;
    for _ in 0..40 {
        let messages = first.metric("fusioncap_consumer_lag_messages");
        assert_eq!(messages, 0.0, "all was answered:\n{}", first.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
