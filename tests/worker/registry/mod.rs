//! Captions, dead letters and requests in Confluent's wire format: a real worker, Kafka and S3
//! server, a real schema registry, and Apache Avro's library for Java at the other end.

#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/bucket.rs"]
mod bucket;
#[allow(dead_code, reason = "shared with tests/audit")]
#[path = "../audit/command.rs"]
mod command;
mod evolution;
mod flow;
#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/kafka.rs"]
mod kafka;
#[path = "../object_store/mod.rs"]
mod object_store;
mod outage;
#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/process.rs"]
mod process;
#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/proxy.rs"]
mod proxy;
mod server;
mod start;
#[allow(dead_code, reason = "shared with tests/audit")]
#[path = "../audit/topic.rs"]
mod topic;

use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use fusioncap::message::RawRecord;
use parking_lot::Mutex;

use bucket::Bucket;
use kafka::{Cluster, Topics};
use process::Configuration;
use server::Server;
use topic::{Raw, Writer};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// What all tests that don't harm it share, while any of them runs.
fn shared<T>(shared: &Mutex<Weak<T>>, start: impl FnOnce() -> T) -> Arc<T> {
    let mut shared = shared.lock();
    if let Some(running) = shared.upgrade() {
        return running;
    }
    let started = Arc::new(start());
    *shared = Arc::downgrade(&started);
    started
}

pub fn shared_cluster() -> Arc<Cluster> {
    static SHARED: LazyLock<Mutex<Weak<Cluster>>> = LazyLock::new(Mutex::default);
    shared(&SHARED, || Cluster::start(1))
}

pub fn shared_server() -> Arc<Server> {
    static SHARED: LazyLock<Mutex<Weak<Server>>> = LazyLock::new(Mutex::default);
    shared(&SHARED, Server::start)
}

/// A worker that knows the registry; `fields` are more lines of its section.
pub fn configuration(
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
pub fn ask(cluster: &Cluster, topics: &Topics, payloads: &[Vec<u8>]) {
    ask_partition(cluster, topics, 0, payloads);
}

pub fn ask_partition(cluster: &Cluster, topics: &Topics, partition: i32, payloads: &[Vec<u8>]) {
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
pub fn await_raw(cluster: &Cluster, topic: &str, count: usize) -> Vec<Raw> {
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

pub fn payloads(records: &[Raw]) -> Vec<Vec<u8>> {
    records.iter().map(|raw| raw.record.payload.clone().unwrap()).collect()
}
