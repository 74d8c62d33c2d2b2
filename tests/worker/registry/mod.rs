//! Captions, dead letters and requests in Confluent's wire format: a real worker, Kafka and S3
//! server, a real schema registry, and Apache Avro's library for Java at the other end.

mod evolution;
mod flow;
mod outage;
mod server;
mod start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fusioncap::message::RawRecord;
use kit::bucket::Bucket;
use kit::kafka::{Cluster, Topics};
use kit::process::Configuration;

use server::Server;

use crate::Shared;
use crate::topic::{self, Raw, Writer};

const PATIENCE: Duration = Duration::from_secs(60);

/// One registry for all tests that do not harm it.
fn shared_server() -> Arc<Server> {
    static SHARED: Shared<Server> = Shared::new();
    SHARED.get(Server::start)
}

/// A worker that knows the registry; `fields` are more lines of its section.
fn configuration(
    cluster: &Cluster,
    topics: &Topics,
    bucket: &Bucket,
    url: &str,
    fields: &str,
) -> Configuration {
    Configuration::new("one", cluster, topics, bucket)
        .replacing("http:\n", &format!("registry:\n  url: {url}\n{fields}http:\n"))
}

/// Puts messages on partition 0 of the input topic.
fn ask(cluster: &Cluster, topics: &Topics, payloads: &[Vec<u8>]) {
    ask_partition(cluster, topics, 0, payloads);
}

fn ask_partition(cluster: &Cluster, topics: &Topics, partition: i32, payloads: &[Vec<u8>]) {
    let writer = Writer::new(cluster);
    for payload in payloads {
        let record = RawRecord {
            key: Some(b"the key".to_vec()),
            payload: Some(payload.clone()),
            headers: Vec::new(),
        };
        writer.write(&topics.input, partition, &record);
    }
    writer.flush();
}

/// Reads a topic until it has `count` records.
fn await_raw(cluster: &Cluster, topic: &str, count: usize) -> Vec<Raw> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let records = topic::read(cluster, topic);
        if records.len() >= count {
            return records;
        }
        let found = records.len();
        assert!(Instant::now() < deadline, "{found} of {count} records");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn payloads(records: &[Raw]) -> Vec<Vec<u8>> {
    records.iter().map(|raw| raw.record.payload.clone().unwrap()).collect()
}
