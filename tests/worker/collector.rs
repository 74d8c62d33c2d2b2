//! A real OpenTelemetry Collector: takes OTLP in and writes what it got to files, which are read
//! here. Built by `scripts/otel-collector`.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use kit::{free_address, root};
use serde_json::Value;

pub struct Collector {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
    folder: tempfile::TempDir,
}

/// One span as the Collector wrote it.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty where it has none.
    pub parent: String,
    pub name: String,
    /// As in OTLP: 1 internal, 3 client, 4 producer, 5 consumer.
    pub kind: i64,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    /// Ids of the spans that it is linked to.
    pub links: Vec<String>,
    /// 0 unset, 2 error.
    pub status: i64,
    attributes: Value,
}

impl Span {
    /// An attribute, as text; empty where it is absent.
    pub fn attribute(&self, key: &str) -> String {
        attribute(&self.attributes, key)
    }
}

impl Collector {
    pub fn start() -> Self {
        static BINARY: LazyLock<String> = LazyLock::new(binary);
        let folder = tempfile::tempdir().unwrap();
        let (grpc, http) = (free_address(), free_address());
        let mut exporters = String::new();
        let mut pipelines = String::new();
        for signal in ["traces", "metrics", "logs"] {
            let path = folder.path().join(signal);
            let path = path.display();
            exporters += &format!("  file/{signal}: {{path: '{path}', flush_interval: 100ms}}\n");
            pipelines +=
                &format!("    {signal}: {{receivers: [otlp], exporters: [file/{signal}]}}\n");
        }
        let config = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc: {{endpoint: '{grpc}'}}\n      \
             http: {{endpoint: '{http}'}}\n\
             exporters:\n{exporters}\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n{pipelines}"
        );
        let path = folder.path().join("collector.yaml");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(&*BINARY)
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut collector = Self { child, grpc, http, folder };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(grpc).is_err() || TcpStream::connect(http).is_err() {
            let ended = collector.child.try_wait().unwrap();
            let log = fs::read_to_string(collector.folder.path().join("log")).unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no collector:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        collector
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn grpc(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// The same, for `OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf`.
    pub fn http(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Every span, when the Collector has ended: only then is everything in its files.
    pub fn spans(&self) -> Vec<Span> {
        let spans = self.read("traces", ["resourceSpans", "scopeSpans", "spans"]);
        spans.iter().map(span).collect()
    }

    /// Names of the metrics.
    pub fn metrics(&self) -> Vec<String> {
        let metrics = self.read("metrics", ["resourceMetrics", "scopeMetrics", "metrics"]);
        metrics.iter().map(|metric| text(metric, "name")).collect()
    }

    /// Log records, as OTLP's JSON has them.
    pub fn logs(&self) -> Vec<Value> {
        self.read("logs", ["resourceLogs", "scopeLogs", "logRecords"])
    }

    /// The `service.name` of all that sent `signal`.
    pub fn services(&self, signal: &str, resources: &str) -> Vec<String> {
        let lines = self.lines(signal);
        let all = lines.iter().flat_map(|line| line[resources].as_array().unwrap().clone());
        all.map(|of| attribute(&of["resource"]["attributes"], "service.name")).collect()
    }

    /// Ends it, in order: its files are complete then.
    pub fn stop(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }

    fn lines(&self, signal: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join(signal)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn read(&self, signal: &str, [resources, scopes, items]: [&str; 3]) -> Vec<Value> {
        let none = Vec::new();
        let mut found = Vec::new();
        for line in self.lines(signal) {
            for resource in line[resources].as_array().unwrap() {
                for scope in resource[scopes].as_array().unwrap_or(&none) {
                    found.extend(scope[items].as_array().unwrap_or(&none).iter().cloned());
                }
            }
        }
        found
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> String {
    let output =
        Command::new(root("scripts/otel-collector")).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "scripts/otel-collector failed: is Go there?");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn span(value: &Value) -> Span {
    let number = |name: &str| text(value, name).parse().unwrap();
    let links = value["links"].as_array().cloned().unwrap_or_default();
    Span {
        trace: text(value, "traceId"),
        id: text(value, "spanId"),
        parent: text(value, "parentSpanId"),
        name: text(value, "name"),
        kind: value["kind"].as_i64().unwrap_or(1),
        start: number("startTimeUnixNano"),
        end: number("endTimeUnixNano"),
        links: links.iter().map(|link| text(link, "spanId")).collect(),
        status: value["status"]["code"].as_i64().unwrap_or(0),
        attributes: value["attributes"].clone(),
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// One value of OTLP's list of attributes.
pub fn attribute(list: &Value, key: &str) -> String {
    let all = list.as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|entry| entry["key"] == key).map(|entry| &entry["value"]);
    let Some(value) = found.and_then(|value| value.as_object()?.values().next()) else {
        return String::new();
    };
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
