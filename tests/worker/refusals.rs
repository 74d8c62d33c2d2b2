//! Configurations that a worker refuses to start with, and its error messages.

use std::time::Duration;

use kit::bucket::Bucket;
use kit::process::Configuration;

use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let cases = [
        ("input_topic", &topics.input),
        ("output_topic", &topics.output),
        ("dead_letter_topic", &topics.dead_letters),
    ];
    // All at once: each waits a while for its topic to appear.
    let workers = cases.map(|(field, topic)| {
        let configuration = Configuration::new("one", &cluster, &topics, &bucket)
            .replacing(&format!("{field}: {topic}"), &format!("{field}: nowhere-{field}"));
        (field, configuration.start())
    });
    for (field, mut worker) in workers {
        assert_eq!(worker.wait(PATIENCE).code(), Some(1), "{}", worker.log());
        let log = worker.log();
        let missing = format!("nowhere-{field}");
        assert!(log.contains(&format!("kafka.{field}")) && log.contains(&missing), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(&cluster.bootstrap, "127.0.0.1:1")
        .replacing("  input_topic: ", "  connect_timeout_ms: 0\n  input_topic: ")
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
