//! Records that a topic refuses: for their size, for that of their batch, or while its brokers are
//! away.

use std::collections::HashMap;
use std::time::Duration;

use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::Configuration;
use rdkafka::admin::TopicReplication;
use rdkafka::config::ClientConfig;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, Producer};
use serde_json::json;

use crate::faults::{PARTITIONS, fill, produce};
use crate::fences::{PATIENCE, assert_settled};
use crate::{Expected, assert_exactly_once, shared_cluster};

/// Some references to one picture, each with attributes of the given length; where they are.
pub async fn ask(
    cluster: &Cluster,
    topics: &Topics,
    partition: i32,
    lengths: &[usize],
) -> Vec<i64> {
    let producer = cluster.producer();
    let mut offsets = Vec::new();
    for &length in lengths {
        let attributes = json!({"text": "x".repeat(length)});
        let payload = json!({"uri": uri("0.png"), "attributes": attributes}).to_string();
        let headers = OwnedHeaders::new();
        let bytes = payload.as_bytes();
        offsets.push(deliver(&producer, &topics.input, partition, "k", bytes, headers).await);
    }
    offsets
}

/// Some captions are too large for the output topic, and their dead letters, with the original
/// bytes, too large for the dead-letter topic: they hold up nothing and nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_caption_that_its_topic_does_not_take_becomes_a_dead_letter() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    for topic in [&topics.output, &topics.dead_letters] {
        cluster.set(topic, "max.message.bytes", "30000").await;
    }
    let mut lengths = [10; 40];
    (lengths[7], lengths[8], lengths[30]) = (25_000, 40_000, 40_000);
    let offsets = ask(&cluster, &topics, 0, &lengths).await;
    let outcome = |length| match length {
        10 | 25_000 => Expected::Caption,
        _ => Expected::DeadLetter("record_too_large"),
    };
    let expected: HashMap<(i32, i64), Expected> = offsets
        .iter()
        .zip(lengths)
        .map(|(&offset, length)| ((0, offset), outcome(length)))
        .collect();
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        // Or everything would fit.
        .with_property("compression.type", "none")
        .start();
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, expected.len(), PATIENCE);
    assert_exactly_once(&records, &expected);
    assert!(worker.log().contains("\"a record is too large for its topic\""), "none was refused");
    let letters = cluster.read_committed(&[&topics.dead_letters]);
    for letter in &letters {
        assert_eq!(letter.text("uri"), uri("0.png"));
        assert!(letter.text("reason").contains("refused by"), "{}", letter.text("reason"));
        assert_eq!(letter.text("payload_base64"), "", "its topic would not take it");
    }
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    assert_eq!(cluster.committed(&topics.group, &topics.input, 1), 40);
}

/// Records that fit are refused in batches that don't.
#[tokio::test(flavor = "multi_thread")]
async fn captions_that_their_topic_takes_one_by_one_are_written_one_by_one() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    cluster.set(&topics.output, "max.message.bytes", "8000").await;
    let offsets = ask(&cluster, &topics, 0, &[5_000; 24]).await;
    let expected: HashMap<(i32, i64), Expected> =
        offsets.iter().map(|&offset| ((0, offset), Expected::Caption)).collect();
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        // All in one partition's batch.
        .with_property("sticky.partitioning.linger.ms", "1000")
        // Or the batch would fit.
        .with_property("compression.type", "none")
        .start();
    worker.await_log("\"transaction failed\"", 1);
    assert!(worker.log().contains("Message size too large"), "{}", worker.log());
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, expected.len(), PATIENCE);
    assert_exactly_once(&records, &expected);
}

/// One of the two brokers that hold the captions is away for a minute, so that nothing can be
/// written to them: the worker keeps its place in the group and goes on by itself afterwards. The
/// broker also coordinates the worker's transactions, so that other calls fail before the records.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_nothing_for_a_while_is_waited_for_takes_minutes() {
    let cluster = Cluster::start(3);
    if !cluster.is_ours() {
        return;
    }
    let bucket = Bucket::start();
    let replicas: [&[i32]; 3] = [&[1, 2]; 3];
    let topics = cluster.topics_with(PARTITIONS, TopicReplication::Variable(&replicas)).await;
    fill(&bucket);
    let name = name_with_coordinator(&cluster, &topics, 2);
    let mut worker = Configuration::new(&name, &cluster, &topics, &bucket)
        .replacing("message.timeout.ms: 6000", "message.timeout.ms: 2000")
        // The broker may be the group's coordinator too, and is missed after a while.
        .replacing("session.timeout.ms: 9000", "session.timeout.ms: 30000")
        .start();
    worker.await_ready();
    let mut expected = produce(&cluster, &topics, 0..200).await;
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    cluster.await_records(&both, 200, PATIENCE);
    cluster.broker("kill", 2);
    expected.extend(produce(&cluster, &topics, 200..400).await);
    worker.await_log("\"transaction failed\"", 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(worker.is_running(), "{}", worker.log());
    let captions = cluster.read_committed(&[&topics.output]).len();
    assert!(captions <= 200, "{captions} captions were written all the same");
    cluster.broker("start", 2);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    let revoked = worker.log().matches("\"partitions revoked\"").count();
    assert_eq!(revoked, 1, "only at the end: {}", worker.log());
}

/// The name of a worker whose transactions `broker` coordinates: it leads the partition of
/// `__transaction_state` that the hash of the transactional id gives.
fn name_with_coordinator(cluster: &Cluster, topics: &Topics, broker: i32) -> String {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &cluster.bootstrap);
    client.set("transactional.id", format!("{}-first", topics.group));
    let producer: BaseProducer = client.create().unwrap();
    // Creates the topic.
    producer.init_transactions(PATIENCE).unwrap();
    let topic = "__transaction_state";
    let metadata = producer.client().fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions();
    let leads = |name: &String| {
        let id = format!("{}-{name}", topics.group);
        // Java's `String.hashCode`.
        let hash = id
            .bytes()
            .fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)));
        let number = hash.unsigned_abs() as usize % partitions.len();
        partitions.iter().any(|found| found.id() == number as i32 && found.leader() == broker)
    };
    (0..1_000).map(|number| format!("one{number}")).find(leads).expect("it leads a partition")
}
