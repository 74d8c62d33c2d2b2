//! A real schema registry, started by `scripts/schema-registry`, and Apache Avro's own library for
//! Java, which comes with it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit::root;
use serde_json::{Value, json};

pub struct Server {
    /// The API's URL.
    pub url: String,
    state: PathBuf,
}

impl Server {
    /// A new one, gone when this process is.
    pub fn start() -> Self {
        let state = std::env::temp_dir().join(format!("fusioncap-test-{}", uuid::Uuid::new_v4()));
        let owner = std::process::id().to_string();
        let output = script("up", &state).args(["--until-exit-of", &owner]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "scripts/schema-registry up: {errors}");
        Self { url: String::from_utf8(output.stdout).unwrap().trim().to_owned(), state }
    }

    /// Runs `kill` or `start`.
    pub fn run(&self, command: &str) {
        let status = script(command, &self.state).status().unwrap();
        assert!(status.success(), "scripts/schema-registry {command}");
    }

    pub async fn answers(&self) -> bool {
        reqwest::get(format!("{}/subjects", self.url)).await.is_ok()
    }

    pub async fn get(&self, path: &str) -> Value {
        reqwest::get(format!("{}{path}", self.url)).await.unwrap().json().await.unwrap()
    }

    pub async fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("{}{path}", self.url);
        let answer = reqwest::Client::new().request(method, url).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Registers a schema of `AVRO`, `JSON` or `PROTOBUF`; its id.
    pub async fn register(&self, subject: &str, kind: &str, schema: &str) -> u32 {
        let body = json!({"schemaType": kind, "schema": schema});
        let path = format!("/subjects/{subject}/versions");
        let (status, answer) = self.send("POST", &path, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["id"].as_u64().unwrap().try_into().unwrap()
    }

    /// Reads framed Avro records as a Java consumer does, by the schema of each id, or resolved to
    /// `wanted`.
    pub fn read_avro(&self, records: &[Vec<u8>], wanted: Option<&str>) -> Vec<Value> {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = vec!["read".to_owned(), self.url.clone()];
        if let Some(schema) = wanted {
            let file = folder.path().join("reader.avsc");
            std::fs::write(&file, schema).unwrap();
            arguments.push(file.display().to_string());
        }
        let lines = records.iter().map(|record| STANDARD.encode(record)).collect();
        let told = java(&arguments, lines);
        told.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Writes records as a Java producer does. Of a union, Avro's JSON names the branch.
    pub fn write_avro(&self, id: u32, records: &[Value]) -> Vec<Vec<u8>> {
        let arguments = ["write".to_owned(), self.url.clone(), id.to_string()];
        let told = java(&arguments, records.iter().map(Value::to_string).collect());
        told.iter().map(|line| STANDARD.decode(line).unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The watcher would do it too, a moment later.
        let _ = script("down", &self.state).status();
    }
}

/// A record behind the prefix that names its schema.
pub fn framed(id: u32, record: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], record].concat()
}

/// Where Java finds the program, compiled once.
static CLASSES: LazyLock<String> = LazyLock::new(|| {
    let jars = script("classpath", Path::new("/")).output().unwrap();
    let jars = String::from_utf8(jars.stdout).unwrap().trim().to_owned();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("avro-records");
    let compiled = Command::new("javac")
        .args(["-cp", &jars, "-d"])
        .arg(&folder)
        .arg(root("tests/worker/registry/AvroRecords.java"))
        .status()
        .unwrap();
    assert!(compiled.success());
    format!("{}:{jars}", folder.display())
});

fn java(arguments: &[String], lines: Vec<String>) -> Vec<String> {
    let mut child = Command::new("java")
        .args([
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            CLASSES.as_str(),
            "AvroRecords",
        ])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let count = lines.len();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(input, "{line}").unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    writer.join().unwrap();
    let told: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(told.len(), count, "{errors}");
    told
}

fn script(command: &str, state: &Path) -> Command {
    let mut script = Command::new(root("scripts/schema-registry"));
    script.arg(command).arg("--state").arg(state);
    script
}
