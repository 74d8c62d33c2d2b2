//! A worker as a process: configured by a file, observed through its log and its metrics, ended by
//! signals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::bucket::{BUCKET, Bucket};
use crate::kafka::{Cluster, Topics};
use crate::{binary, free_address, root};

/// The configuration of one worker.
#[derive(Clone)]
pub struct Configuration {
    /// The configuration file.
    pub yaml: String,
    brokers: String,
    listen: SocketAddr,
    log: &'static str,
    variables: Vec<(&'static str, String)>,
}

impl Configuration {
    /// A worker called `name`, with timeouts short enough for a test.
    pub fn new(name: &str, cluster: &Cluster, topics: &Topics, bucket: &Bucket) -> Self {
        let listen = free_address();
        let model = root("models/random");
        let s3 = bucket.access();
        let yaml = format!(
            "kafka:\n  brokers: {brokers}\n  group: {group}\n  transactional_id: {group}-{name}\n  \
             input_topic: {input}\n  output_topic: {output}\n  dead_letter_topic: {dead}\n  \
             properties:\n    session.timeout.ms: 9000\n    transaction.timeout.ms: 8000\n    \
             message.timeout.ms: 6000\n\
             s3:\n  endpoint: {endpoint}\n  force_path_style: true\n  access_key_id: {key}\n  \
             secret_access_key: {secret}\n  allowed_buckets: [{BUCKET}]\n  max_attempts: 3\n  \
             backoff_initial_ms: 10\n  backoff_max_ms: 100\n\
             model:\n  path: {model}\n\
             batch:\n  size: 8\n  linger_ms: 20\n\
             runtime:\n  drain_timeout_ms: 10000\n\
             limits:\n  max_object_bytes: 1000000\n  max_in_flight: 128\n\
             http:\n  listen: {listen}\n",
            brokers = cluster.bootstrap,
            group = topics.group,
            input = topics.input,
            output = topics.output,
            dead = topics.dead_letters,
            endpoint = s3.endpoint,
            key = s3.access_key_id,
            secret = s3.secret_access_key,
            model = model.display(),
        );
        let brokers = cluster.bootstrap.clone();
        Self { yaml, brokers, listen, log: "info", variables: Vec::new() }
    }

    /// Adds a librdkafka property.
    pub fn with_property(self, name: &str, value: &str) -> Self {
        self.replacing("  properties:\n", &format!("  properties:\n    {name}: '{value}'\n"))
    }

    /// Makes the worker a static member of its group.
    pub fn with_instance(self, id: &str) -> Self {
        let input = "  input_topic: ";
        self.replacing(input, &format!("  group_instance_id: {id}\n{input}"))
    }

    /// Makes the worker read and caption an object again for each reference to it.
    pub fn without_coalescing(self) -> Self {
        self.replacing("limits:\n", "limits:\n  coalesce_window_ms: 0\n")
    }

    /// Makes each attempt to read an object one request, however long it takes.
    pub fn without_hedging(self) -> Self {
        self.replacing("s3:\n", "s3:\n  hedging: false\n")
    }

    /// Logs the worker's own events at `debug`.
    pub fn with_debug_log(mut self) -> Self {
        self.log = "info,fusioncap=debug";
        self
    }

    /// Reaches Kafka through the proxy at `address` only.
    pub fn through(self, address: SocketAddr) -> Self {
        let brokers = self.brokers.clone();
        self.replacing(&brokers, &address.to_string())
    }

    /// Reaches the object store at `store` instead of the bucket's server.
    pub fn with_store(self, bucket: &Bucket, store: SocketAddr) -> Self {
        self.replacing(&bucket.access().endpoint, &format!("http://{store}"))
    }

    /// Replaces every `from` in the configuration file, which must contain it.
    pub fn replacing(mut self, from: &str, to: &str) -> Self {
        assert!(self.yaml.contains(from), "{from} is not in {}", self.yaml);
        self.yaml = self.yaml.replace(from, to);
        self
    }

    /// Adds an environment variable.
    pub fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Starts the worker. Its environment is the caller's, `FUSIONCAP_CONFIG` and `FUSIONCAP_LOG`
    /// apart.
    pub fn start(&self) -> Worker {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("worker.yaml");
        fs::write(&config, &self.yaml).unwrap();
        let log = folder.path().join("worker.log");
        let out = File::create(&log).unwrap();
        let child = Command::new(binary())
            .arg("worker")
            .arg("--config")
            .arg(&config)
            .env_remove("FUSIONCAP_CONFIG")
            .env("FUSIONCAP_LOG", self.log)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Worker { child, log, listen: self.listen, _folder: folder }
    }
}

/// A running worker; dropping it kills it.
pub struct Worker {
    child: Child,
    log: PathBuf,
    listen: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Worker {
    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until the process has ended; panics after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until its log contains `text` at least `times` times.
    pub fn await_log(&mut self, text: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.log().matches(text).count() < times {
            assert!(self.is_running(), "the worker ended:\n{}", self.log());
            assert!(Instant::now() < deadline, "no '{text}':\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until `/readyz` answers 200.
    pub fn await_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(self.is_running(), "the worker ended:\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The sum of a metric over its labels, or the value of one series, `name{label="value"}`; 0 if
    /// there is none.
    pub fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics").unwrap_or_default();
        answer
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The answer to a GET, or none while nothing listens.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.listen).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Otherwise a test that fails leaves its workers running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
