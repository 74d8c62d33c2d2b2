//! Records byte for byte, written and read without a client that takes them for text.

use std::time::{Duration, Instant};

use fusioncap::kafka::producer::PolledProducer;
use fusioncap::kafka::record::{ProducerRecord, produce_record};
use fusioncap::message::{RawHeader, RawRecord};
use kit::kafka::Cluster;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::Producer;

const TIMEOUT: Duration = Duration::from_secs(30);

/// One committed record.
#[derive(Clone, Debug)]
pub struct Raw {
    pub partition: i32,
    pub record: RawRecord,
}

impl Raw {
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = RawHeader::find(&self.record.headers, name)?;
        Some(std::str::from_utf8(value).unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.record.payload.as_deref().unwrap()).unwrap()
    }
}

/// Everything committed in `topic`.
pub fn read(cluster: &Cluster, topic: &str) -> Vec<Raw> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("group.id", "raw-reader")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let mut assignment = rdkafka::TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(topic, partition.id(), rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let (mut records, mut ended) = (Vec::new(), 0);
    let deadline = Instant::now() + TIMEOUT;
    while ended < assignment.count() {
        assert!(Instant::now() < deadline, "the reader did not reach the end");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("the reader failed: {error}"),
            Some(Ok(message)) => records
                .push(Raw { partition: message.partition(), record: RawRecord::detach(&message) }),
        }
    }
    records
}

/// Writes records as they are.
pub struct Writer(PolledProducer);

impl Writer {
    pub fn new(cluster: &Cluster) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &cluster.bootstrap).set("linger.ms", "5");
        Self(PolledProducer::new(&config).unwrap())
    }

    pub fn write(&self, topic: &str, partition: i32, record: &RawRecord) {
        let record = ProducerRecord::new(topic, Some(partition), record);
        produce_record(&self.0, &record, 0).unwrap();
    }

    /// Waits until all of it is stored.
    pub fn flush(&self) {
        self.0.flush(TIMEOUT).unwrap();
    }
}

/// A record with headers of text.
pub fn record(payload: &str, headers: &[(&str, &str)]) -> RawRecord {
    RawRecord {
        key: Some(b"k".to_vec()),
        payload: Some(payload.into()),
        headers: headers.iter().map(|(name, value)| RawHeader::new(name, *value)).collect(),
    }
}
