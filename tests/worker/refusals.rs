//! What a worker refuses to start with, and how it says so.

use std::time::Duration;

use crate::bucket::Bucket;
use crate::process::Configuration;
use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let mut topics = cluster.topics(1).await;
    topics.dead_letters = "nowhere".into();
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    assert!(!worker.wait(PATIENCE).success());
    assert!(worker.log().contains("nowhere"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(&cluster.bootstrap, "127.0.0.1:1")
        .start();
    assert_eq!(worker.wait(PATIENCE).code(), Some(1));
    let log = worker.log();
    assert!(log.contains("kafka.brokers") && log.contains("127.0.0.1:1"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_property_that_exactly_once_rests_on_is_refused() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing("session.timeout.ms: 9000", "isolation.level: read_uncommitted")
        .start();
    assert_eq!(worker.wait(PATIENCE).code(), Some(2));
    assert!(worker.log().contains("isolation.level"), "{}", worker.log());
}
