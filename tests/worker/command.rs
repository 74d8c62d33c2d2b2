//! The binary's subcommands, with a configuration that knows Kafka alone.

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kit::kafka::{Cluster, Topics};
use serde_json::Value;

/// `fusioncap SUBCOMMAND` for the topics of one test.
pub struct Subcommand {
    name: &'static str,
    folder: tempfile::TempDir,
}

impl Subcommand {
    pub fn new(name: &'static str, cluster: &Cluster, topics: &Topics) -> Self {
        Self::of(name, &cluster.bootstrap, topics)
    }

    /// As [`Self::new`], for `brokers` of one's own choice.
    pub fn of(name: &'static str, brokers: &str, topics: &Topics) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let yaml = format!(
            "kafka:\n  brokers: {brokers}\n  group: {}\n  input_topic: {}\n  output_topic: {}\n  \
             dead_letter_topic: {}\n",
            topics.group, topics.input, topics.output, topics.dead_letters
        );
        std::fs::write(folder.path().join("kafka.yaml"), yaml).unwrap();
        Self { name, folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kit::binary());
        command
            .arg(self.name)
            .arg("--config")
            .arg(self.folder.path().join("kafka.yaml"))
            .args(arguments)
            .env_remove("FUSIONCAP_CONFIG");
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs with `--json`: the exit code and the object.
    pub fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.output(&[arguments, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let value = serde_json::from_slice(&output.stdout);
        (output.status.code().unwrap(), value.unwrap_or_else(|error| panic!("{error}: {errors}")))
    }

    /// Exit code 2 and one line on stderr: that line.
    pub fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        errors
    }

    pub fn start(&self, arguments: &[&str]) -> Running {
        let child =
            self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running(child)
    }
}

/// A subcommand at work; killed when dropped.
pub struct Running(Child);

impl Running {
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Sends a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end: exit code (none after a signal), stdout and stderr.
    pub fn wait(&mut self) -> (Option<i32>, String, String) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.is_running() {
            assert!(Instant::now() < deadline, "still running");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (mut out, mut errors) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.0.wait().unwrap().code(), out, errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
