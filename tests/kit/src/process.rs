//! The real binary as a process: configured by a file, watched through its log and its metrics,
//! ended by signals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::bucket::{BUCKET, Bucket};
use crate::kafka::{Cluster, Topics};
use crate::proxy::Proxy;

/// One worker's configuration, as YAML.
#[derive(Clone)]
pub struct Configuration {
    pub yaml: String,
    listen: SocketAddr,
    log: &'static str,
    variables: Vec<(&'static str, String)>,
}

impl Configuration {
    /// A worker called `name`, with time-outs short enough for a test.
    pub fn new(name: &str, cluster: &Cluster, topics: &Topics, bucket: &Bucket) -> Self {
        let listen = free_address();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/random");
        let s3 = bucket.settings();
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
            endpoint = s3.endpoint.as_deref().unwrap(),
            key = s3.access_key_id.as_deref().unwrap(),
            secret = bucket.secret(),
            model = model.display(),
        );
        Self { yaml, listen, log: "info", variables: Vec::new() }
    }

    /// The same with one more librdkafka property.
    pub fn with_property(self, name: &str, value: &str) -> Self {
        self.replacing("  properties:\n", &format!("  properties:\n    {name}: '{value}'\n"))
    }

    /// The same as a static member of its group.
    pub fn with_instance(self, id: &str) -> Self {
        let input = "  input_topic: ";
        self.replacing(input, &format!("  group_instance_id: {id}\n{input}"))
    }

    /// The same, reading and captioning an object anew for each reference.
    pub fn without_repeats(self) -> Self {
        self.replacing("limits:\n", "limits:\n  repeat_window_ms: 0\n")
    }

    /// The same with everything in its log.
    pub fn with_debug_log(mut self) -> Self {
        self.log = "info,fusioncap=debug";
        self
    }

    /// The same, reaching Kafka through `proxy` alone.
    pub fn through(self, cluster: &Cluster, proxy: &Proxy) -> Self {
        self.replacing(&cluster.bootstrap, &proxy.address.to_string())
    }

    /// The same with another object store than the bucket's own server.
    pub fn with_store(self, bucket: &Bucket, store: SocketAddr) -> Self {
        let endpoint = bucket.settings().endpoint.as_deref().unwrap();
        self.replacing(endpoint, &format!("http://{store}"))
    }

    /// The same with every `from` replaced.
    pub fn replacing(mut self, from: &str, to: &str) -> Self {
        assert!(self.yaml.contains(from), "{from} is not in {}", self.yaml);
        self.yaml = self.yaml.replace(from, to);
        self
    }

    /// The same with one more environment variable.
    pub fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub fn start(&self) -> Worker {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("worker.yaml");
        fs::write(&config, &self.yaml).unwrap();
        let log = folder.path().join("worker.log");
        let out = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_fusioncap"))
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

pub struct Worker {
    child: Child,
    log: PathBuf,
    listen: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Worker {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL and waits for the end.
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

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until its log has `text` so many times.
    pub fn await_log(&mut self, text: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.log().matches(text).count() < times {
            assert!(self.is_running(), "the worker ended:\n{}", self.log());
            assert!(Instant::now() < deadline, "no '{text}':\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until `/readyz` says so.
    pub fn await_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(self.is_running(), "the worker ended:\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The sum of a metric over its labels, or one series, `name{label="value"}`; 0 where it is
    /// absent.
    pub fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics").unwrap_or_default();
        answer
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The answer to a plain GET, or nothing while nobody listens.
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
        // A test that failed leaves its workers running otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
