//! One of those that are compared: a process with topics of its own, given references and watched
//! through the captions that it commits.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::bucket::Bucket;
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::{Configuration, Worker};
use kit::root;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedHeaders};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::BATCH;

const PARTITIONS: i32 = 4;
/// Partitions of the captions' topic, as `Cluster::topics` makes it.
const OUTPUT_PARTITIONS: i32 = 3;
const PATIENCE: Duration = Duration::from_secs(900);
const PAUSE: Duration = Duration::from_millis(5);

pub struct Contender {
    pub name: &'static str,
    topics: Topics,
    process: Process,
    reader: BaseConsumer,
}

enum Process {
    Worker(Worker),
    Script { child: Child, log: PathBuf, _folder: tempfile::TempDir },
}

/// The result of one round.
pub struct Round {
    /// Captions a second from the first reference to the last caption's commit: from the first
    /// caption on, what was fetched and decoded ahead of it would count for nothing.
    pub rate: f64,
    /// By the image's URI.
    pub captions: HashMap<String, String>,
}

impl Contender {
    pub async fn ours(cluster: &Cluster, bucket: &Bucket) -> Self {
        let topics = cluster.topics(PARTITIONS).await;
        let configuration = Configuration::new("ours", cluster, &topics, bucket)
            .replacing("models/random", "models/tiny")
            .replacing("size: 8", &format!("size: {BATCH}"))
            // Large photos come one by one; a batch that waits costs less than one that is padded.
            .replacing("linger_ms: 20", "linger_ms: 2000")
            .replacing("max_object_bytes: 1000000", "max_object_bytes: 50000000")
            .replacing("max_in_flight: 128", "max_in_flight: 512");
        let mut worker = configuration.start();
        worker.await_ready();
        let reader = reader(cluster, &topics);
        Self { name: "fusioncap worker", topics, process: Process::Worker(worker), reader }
    }

    pub async fn script(cluster: &Cluster, bucket: &Bucket, options: &[&str]) -> Self {
        let topics = cluster.topics(PARTITIONS).await;
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("script.log");
        let out = File::create(&log).unwrap();
        let python = std::env::var_os("BENCH_PYTHON")
            .map_or_else(|| root(".tools/bench-python/bin/python"), PathBuf::from);
        let s3 = bucket.access();
        let child = Command::new(&python)
            .arg(root("benches/peer/worker.py"))
            .arg("--model")
            .arg(root("models/tiny"))
            .args(["--brokers", &cluster.bootstrap])
            .args(["--input", &topics.input])
            .args(["--output", &topics.output])
            .args(["--dead-letters", &topics.dead_letters])
            .args(["--group", &topics.group])
            .args(["--batch", &BATCH.to_string()])
            .args(["--idle", &PATIENCE.as_secs().to_string()])
            .args(options)
            .env("AWS_ENDPOINT_URL_S3", &s3.endpoint)
            .env("AWS_ACCESS_KEY_ID", &s3.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &s3.secret_access_key)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; see `make bench-peer`", python.display()));
        let name = if options.is_empty() { "the Python loop" } else { "the loop with draft" };
        let reader = reader(cluster, &topics);
        let process = Process::Script { child, log, _folder: folder };
        Self { name, topics, process, reader }
    }

    /// Refers to every one of `uris`, and waits for its caption.
    pub async fn caption(&mut self, cluster: &Cluster, uris: &[String]) -> Round {
        let producer = cluster.producer();
        let payloads: Vec<String> =
            uris.iter().map(|uri| serde_json::json!({ "uri": uri }).to_string()).collect();
        let started = Instant::now();
        let deliveries = payloads.iter().enumerate().map(|(number, payload)| {
            let partition = number as i32 % PARTITIONS;
            let payload = payload.as_bytes();
            deliver(&producer, &self.topics.input, partition, "k", payload, OwnedHeaders::new())
        });
        futures::future::join_all(deliveries).await;
        let captions = self.await_captions(uris.len());
        Round { rate: uris.len() as f64 / started.elapsed().as_secs_f64(), captions }
    }

    fn await_captions(&mut self, count: usize) -> HashMap<String, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut captions = HashMap::new();
        while captions.len() < count {
            assert!(Instant::now() < deadline, "too slow:\n{}", self.log());
            let Some(message) = self.reader.poll(PAUSE) else {
                assert!(self.is_running(), "{} ended:\n{}", self.name, self.log());
                continue;
            };
            let message = message.unwrap();
            let record: serde_json::Value =
                serde_json::from_slice(message.payload().unwrap()).unwrap();
            let text = |field: &str| record[field].as_str().unwrap().to_owned();
            let twice = captions.insert(text("uri"), text("caption"));
            assert_eq!(twice, None, "{} answered twice", self.name);
        }
        captions
    }

    /// The most memory it ever had, in megabytes.
    pub fn peak(&self) -> f64 {
        let pid = match &self.process {
            Process::Worker(worker) => worker.pid(),
            Process::Script { child, .. } => child.id(),
        };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024.0 / 1e6
    }

    fn is_running(&mut self) -> bool {
        match &mut self.process {
            Process::Worker(worker) => worker.is_running(),
            Process::Script { child, .. } => child.try_wait().unwrap().is_none(),
        }
    }

    fn log(&self) -> String {
        match &self.process {
            Process::Worker(worker) => worker.log(),
            Process::Script { log, .. } => std::fs::read_to_string(log).unwrap(),
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // The worker sees to itself.
        if let Process::Script { child, .. } = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads what will be committed to the captions' topic.
fn reader(cluster: &Cluster, topics: &Topics) -> BaseConsumer {
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("group.id", "reader")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "20")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..OUTPUT_PARTITIONS {
        assignment.add_partition_offset(&topics.output, partition, Offset::Beginning).unwrap();
    }
    reader.assign(&assignment).unwrap();
    reader
}
