//! The configuration: one YAML file, then the environment, then flags, checked into one type.
//!
//! Every field has a default or is required; every field is also an environment variable
//! (`kafka.brokers` is `FUSIONCAP_KAFKA__BROKERS`). Unknown fields are errors. Secrets are
//! redacted wherever a configuration is printed.

mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use load::Overrides;

/// What the worker runs with.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kafka: Kafka,
    #[serde(default)]
    pub s3: S3,
    pub model: Model,
    #[serde(default)]
    pub batch: Batch,
    #[serde(default)]
    pub runtime: Runtime,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub http: Http,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Bootstrap servers, `host:port[,host:port]`.
    pub brokers: String,
    /// Consumer group.
    #[serde(default = "defaults::group")]
    pub group: String,
    /// Unique for each running worker, best stable for its slot (a StatefulSet ordinal).
    /// Default: `<group>-<host name>`.
    #[serde(default)]
    pub transactional_id: Option<String>,
    /// Static membership (KIP-345). Default: none.
    #[serde(default)]
    pub group_instance_id: Option<String>,
    #[serde(default = "defaults::input_topic")]
    pub input_topic: String,
    #[serde(default = "defaults::output_topic")]
    pub output_topic: String,
    #[serde(default = "defaults::dead_letter_topic")]
    pub dead_letter_topic: String,
    /// Any librdkafka property, for consumer and producer alike; those that exactly-once
    /// delivery rests on are refused.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// Endpoint URL; the default is AWS's own for the region.
    pub endpoint: Option<String>,
    pub region: String,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`.
    pub force_path_style: bool,
    /// Static credentials; without them the AWS credential chain is asked.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    pub session_token: Option<Secret>,
    /// Buckets that references may name; empty allows every bucket.
    pub allowed_buckets: Vec<String>,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Whole-request deadline in milliseconds, the body included.
    pub timeout_ms: u64,
    /// Tries for one object before its reference is dead-lettered.
    pub max_attempts: u32,
    /// First and longest pause between two tries, in milliseconds.
    pub backoff_initial_ms: u64,
    pub backoff_max_ms: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Bundle: a directory or an `s3://bucket/prefix`.
    pub path: String,
    /// Include the image embedding in every caption record.
    #[serde(default)]
    pub embeddings: bool,
    /// Beam width; the bundle's own by default.
    #[serde(default)]
    pub num_beams: Option<usize>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Images a batch; the engine runs at this size, short batches are padded.
    pub size: usize,
    /// Longest wait for a batch to fill, in milliseconds.
    pub linger_ms: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Execution providers in order of preference.
    pub providers: Vec<Provider>,
    /// CUDA device.
    pub device_id: i32,
    /// Threads inside ONNX Runtime; 0 is one a core.
    pub intra_threads: usize,
    /// Threads that decode images; 0 is one a core.
    pub decode_threads: usize,
    /// ONNX Runtime's shared library; `ORT_DYLIB_PATH` by default.
    pub library: Option<PathBuf>,
    /// How long SIGTERM lets work in flight finish, in milliseconds.
    pub drain_timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Cpu,
    Cuda,
    Tensorrt,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest object that is fetched, in bytes.
    pub max_object_bytes: u64,
    /// Largest image that is decoded, in pixels (width times height as its header claims).
    pub max_pixels: u64,
    /// References in flight in one worker; above it the partitions pause.
    pub max_in_flight: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address of `/livez`, `/readyz` and `/metrics`.
    pub listen: std::net::SocketAddr,
}

/// A string that prints as `******`.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("******")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("******")
    }
}

mod defaults {
    pub fn group() -> String {
        "fusioncap".into()
    }
    pub fn input_topic() -> String {
        "images.in".into()
    }
    pub fn output_topic() -> String {
        "captions.out".into()
    }
    pub fn dead_letter_topic() -> String {
        "images.dlq".into()
    }
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".into(),
            force_path_style: false,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            allowed_buckets: Vec::new(),
            concurrency: 32,
            timeout_ms: 10_000,
            max_attempts: 5,
            backoff_initial_ms: 100,
            backoff_max_ms: 5_000,
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self { size: 8, linger_ms: 50 }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            providers: vec![Provider::Cpu],
            device_id: 0,
            intra_threads: 0,
            decode_threads: 0,
            library: None,
            drain_timeout_ms: 20_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_object_bytes: 64 << 20, max_pixels: 100_000_000, max_in_flight: 512 }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: ([0, 0, 0, 0], 8080).into() }
    }
}
