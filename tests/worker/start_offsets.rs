//! Where a worker begins to read a partition that it was assigned.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::Configuration;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use crate::fences::{PATIENCE, assert_settled};
use crate::{Expected, assert_exactly_once, shared_cluster};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A dead worker's transaction leaves the committed offset unstable, and the group rebalances
/// meanwhile. librdkafka 2.12 takes such a partition for one without a committed offset.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_during_an_open_transaction_repeats_nothing() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("a.png", &picture(1));
    let [one, two] =
        ["one", "two"].map(|name| Configuration::new(name, &cluster, &topics, &bucket));
    let mut expected = HashMap::new();
    refer(&cluster, &topics, 0, 5, &mut expected).await;
    answer(&cluster, &topics, &one, 5);

    let dead = open_transaction(&cluster, &topics, 0..1);
    let mut first = one.start();
    first.await_log("\"partitions assigned\"", 1);
    refer(&cluster, &topics, 0, 1, &mut expected).await;
    let mut second = two.start();
    second.await_log("\"partitions assigned\"", 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let records = cluster.read_committed(&[&topics.output, &topics.dead_letters]);
    assert_eq!(records.len(), 5, "the partition was read while its offset was unstable");

    dead.abort_transaction(TIMEOUT).unwrap();
    assert_settled(&cluster, &topics, &expected, &mut [&mut first, &mut second]);
}

/// Partitions whose committed offsets are unstable do not delay the one assigned with them.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_do_not_wait_for_an_open_transaction_on_others() {
    const LAST: i32 = 20;
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(LAST + 1).await;
    bucket.put("a.png", &picture(1));
    let one = Configuration::new("one", &cluster, &topics, &bucket);
    let mut expected = HashMap::new();
    refer(&cluster, &topics, 0, 5, &mut expected).await;
    refer(&cluster, &topics, LAST, 5, &mut expected).await;
    answer(&cluster, &topics, &one, 10);

    let dead = open_transaction(&cluster, &topics, 0..LAST);
    refer(&cluster, &topics, 0, 1, &mut expected).await;
    refer(&cluster, &topics, LAST, 1, &mut expected).await;
    let mut worker = one.start();
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, 11, Duration::from_secs(30));
    assert!(records.iter().any(|record| record.source() == (LAST, 5)), "{records:?}");
    assert_eq!(records.len(), 11, "partition 0 was read while its offset was unstable");

    dead.abort_transaction(TIMEOUT).unwrap();
    assert_exactly_once(&cluster.await_records(&both, 12, PATIENCE), &expected);
    worker.signal("TERM");
    assert!(worker.wait(TIMEOUT).success(), "{}", worker.log());
}

/// Lets a worker answer `count` references, and ends it.
fn answer(cluster: &Cluster, topics: &Topics, configuration: &Configuration, count: usize) {
    let mut worker = configuration.start();
    cluster.await_records(&[&topics.output, &topics.dead_letters], count, PATIENCE);
    worker.signal("TERM");
    assert!(worker.wait(TIMEOUT).success(), "{}", worker.log());
}

/// Produces `count` references to `partition`.
async fn refer(
    cluster: &Cluster,
    topics: &Topics,
    partition: i32,
    count: usize,
    expected: &mut HashMap<(i32, i64), Expected>,
) {
    let (producer, payload) = (cluster.producer(), json!({"uri": uri("a.png")}).to_string());
    for _ in 0..count {
        let (bytes, headers) = (payload.as_bytes(), OwnedHeaders::new());
        let offset = deliver(&producer, &topics.input, partition, "k", bytes, headers).await;
        expected.insert((partition, offset), Expected::Caption);
    }
}

/// A transaction that commits offsets of `partitions`, and does not end.
fn open_transaction(cluster: &Cluster, topics: &Topics, partitions: Range<i32>) -> BaseProducer {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &cluster.bootstrap);
    let member: BaseConsumer = client.clone().set("group.id", &topics.group).create().unwrap();
    // The longest that brokers allow by default: it must not end by itself.
    client.set("transaction.timeout.ms", "900000");
    let producer: BaseProducer =
        client.set("transactional.id", format!("{}-dead", topics.group)).create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    let mut offsets = TopicPartitionList::new();
    for partition in partitions {
        offsets.add_partition_offset(&topics.input, partition, Offset::Offset(1)).unwrap();
    }
    let metadata = member.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&offsets, &metadata, TIMEOUT).unwrap();
    producer
}
