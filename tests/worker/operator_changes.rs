//! Changes that an operator makes: more partitions, and other committed offsets.

use std::collections::HashMap;

use kit::bucket::{Bucket, picture};
use kit::process::Configuration;
use rdkafka::error::RDKafkaErrorCode;

use crate::fences::PATIENCE;
use crate::refused_records::ask;
use crate::{Expected, assert_exactly_once, shared_cluster};

#[tokio::test(flavor = "multi_thread")]
async fn new_partitions_are_consumed_while_the_worker_runs() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    bucket.put("0.png", &picture(0));
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_property("topic.metadata.refresh.interval.ms", "1000")
        .start();
    worker.await_ready();
    let mut expected = HashMap::new();
    for partition in 0..2 {
        for offset in ask(&cluster, &topics, partition, &[10; 5]).await {
            expected.insert((partition, offset), Expected::Caption);
        }
    }
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    cluster.await_records(&both, 10, PATIENCE);
    cluster.grow(&topics.input, 5).await;
    for partition in 0..5 {
        for offset in ask(&cluster, &topics, partition, &[10; 5]).await {
            expected.insert((partition, offset), Expected::Caption);
        }
    }
    let records = cluster.await_records(&both, expected.len(), PATIENCE);
    assert_exactly_once(&records, &expected);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    assert_eq!(cluster.committed(&topics.group, &topics.input, 5), expected.len() as i64);
}

/// Offsets that an operator moves back are answered again, and nothing else is. Kafka refuses to
/// move the offsets of a running group.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_moved_by_hand_are_followed() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    bucket.put("0.png", &picture(0));
    for partition in 0..2 {
        ask(&cluster, &topics, partition, &[10; 20]).await;
    }
    let configuration = Configuration::new("one", &cluster, &topics, &bucket);
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let mut first = configuration.start();
    cluster.await_records(&both, 40, PATIENCE);
    let refused = cluster.reset(&topics, 0, 0).unwrap_err();
    let code = refused.rdkafka_error_code();
    assert_eq!(code, Some(RDKafkaErrorCode::UnknownMemberId), "the group is at work");
    first.signal("TERM");
    assert!(first.wait(PATIENCE).success(), "{}", first.log());
    assert_eq!(cluster.read_committed(&both).len(), 40);

    cluster.reset(&topics, 0, 13).unwrap();
    let mut second = configuration.start();
    cluster.await_records(&both, 47, PATIENCE);
    second.signal("TERM");
    assert!(second.wait(PATIENCE).success(), "{}", second.log());
    let mut answers: HashMap<(i32, i64), usize> = HashMap::new();
    for record in cluster.read_committed(&both) {
        *answers.entry(record.source()).or_default() += 1;
    }
    for partition in 0..2 {
        for offset in 0..20 {
            let times = if partition == 0 && offset >= 13 { 2 } else { 1 };
            assert_eq!(answers.get(&(partition, offset)), Some(&times), "{partition}, {offset}");
        }
    }
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), 40);
}
