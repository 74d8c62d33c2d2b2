//! The configuration: a YAML file, the environment and flags, merged and validated.
//!
//! Every field has a default or is required; every field is also an environment variable
//! (`kafka.brokers` is `FUSIONCAP_KAFKA__BROKERS`). Unknown fields are errors. Secrets are
//! redacted wherever a configuration is printed.
//!
//! The types below are the only description of a field: their derived JSON Schema drives the
//! checks in [`field`] and `docs/configuration.md` ([`reference`]). [`load`] merges the sources;
//! [`validate`] holds the rules that involve several fields or need a parser.

mod environment;
mod field;
mod line;
mod load;
mod origin;
mod reference;
mod registry;
mod secret;
mod section;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

pub use load::Overrides;
pub use reference::reference;
pub use registry::{Format, Registry, SubjectNameStrategy, Topics};
pub use secret::{Properties, Secret};
pub use validate::{LEAVING_MS, protected};

/// The default of Kafka Streams with exactly-once processing.
pub const DEFAULT_COMMIT_INTERVAL_MS: u64 = 100;

/// The worker's configuration.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kafka: Kafka,
    #[serde(default)]
    pub s3: S3,
    pub model: Model,
    #[serde(default)]
    pub decode: Decode,
    #[serde(default)]
    pub batch: Batch,
    #[serde(default)]
    pub runtime: Runtime,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub http: Http,
    #[serde(default)]
    pub registry: Registry,
}

/// Brokers, topics and the consumer group.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Bootstrap servers.
    #[schemars(extend("x-allowed" = "host:port[,host:port...]"))]
    pub brokers: String,
    /// Consumer group.
    #[serde(default = "defaults::group")]
    #[schemars(length(min = 1))]
    pub group: String,
    /// Unique per running worker, and preferably stable across restarts (a StatefulSet ordinal).
    /// Default: `<group>-<host name>`.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub transactional_id: Option<String>,
    /// Name of this member for static membership (KIP-345), unique in the group.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub group_instance_id: Option<String>,
    /// Rebalance protocol of the group: `classic`, or `consumer` (KIP-848), in which the brokers
    /// assign the partitions and set the session timeouts. With `consumer`, rebalances abort more
    /// transactions, which the worker then repeats.
    #[serde(default = "defaults::group_protocol")]
    #[schemars(extend("x-allowed" = "classic or consumer"))]
    pub group_protocol: String,
    /// Topic of image references.
    #[serde(default = "defaults::input_topic")]
    #[schemars(extend("x-allowed" = "a Kafka topic name"))]
    pub input_topic: String,
    /// Topic of captions.
    #[serde(default = "defaults::output_topic")]
    #[schemars(extend("x-allowed" = "a Kafka topic name"))]
    pub output_topic: String,
    /// Topic of references that can't be captioned.
    #[serde(default = "defaults::dead_letter_topic")]
    #[schemars(extend("x-allowed" = "a Kafka topic name"))]
    pub dead_letter_topic: String,
    /// How long the worker waits at startup for the first broker to answer, in milliseconds. After
    /// that it retries without a limit.
    #[serde(default = "defaults::connect_timeout_ms")]
    #[schemars(range(min = 0, max = 86_400_000))]
    pub connect_timeout_ms: u64,
    /// Minimum time between the starts of two transactions, in milliseconds; a transaction starts
    /// earlier once a quarter of `limits.max_in_flight` is finished. A caption waits up to this long
    /// to be committed together with others.
    #[serde(default = "defaults::commit_interval_ms")]
    #[schemars(range(min = 0, max = 10_000))]
    pub commit_interval_ms: u64,
    /// librdkafka properties for the consumer and the producer. Properties that exactly-once
    /// delivery depends on are refused.
    #[serde(default)]
    pub properties: Properties,
}

impl Kafka {
    pub const CLASSIC: &str = "classic";
    pub const CONSUMER: &str = "consumer";
}

/// The object store with the images.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// Endpoint URL; the default is AWS's endpoint for the region.
    #[schemars(extend("x-allowed" = "an http:// or https:// URL"))]
    pub endpoint: Option<String>,
    /// Region for request signatures.
    #[schemars(length(min = 1))]
    pub region: String,
    /// Use `http://host/bucket/key` instead of `http://bucket.host/key`.
    pub force_path_style: bool,
    /// Static credentials; the default is the AWS credential chain.
    #[schemars(length(min = 1))]
    pub access_key_id: Option<String>,
    /// Secret of `s3.access_key_id`.
    #[schemars(length(min = 1))]
    pub secret_access_key: Option<Secret>,
    /// Session token of temporary static credentials.
    #[schemars(length(min = 1))]
    pub session_token: Option<Secret>,
    /// Buckets that references may name, whole (`photos`) or under a prefix (`photos/public/`);
    /// an empty list allows every bucket.
    #[schemars(extend("x-allowed" = "a list of bucket or bucket/prefix/"))]
    pub allowed_buckets: Vec<String>,
    /// Maximum concurrent requests; the worker adapts the number to what the decoders consume.
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: usize,
    /// Deadline of a whole request, including the body, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub timeout_ms: u64,
    /// Hedge late reads: if a read takes longer than 95 % of the recent ones, and at least 200 ms,
    /// send its request again and use the first response. At most one read in twenty is hedged.
    pub hedging: bool,
    /// Attempts per object before its reference is dead-lettered.
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: u32,
    /// First pause between two attempts, in milliseconds; later pauses grow.
    #[schemars(range(min = 1, max = 600_000))]
    pub backoff_initial_ms: u64,
    /// Maximum pause between two attempts, in milliseconds; at least `s3.backoff_initial_ms`.
    #[schemars(range(min = 1, max = 600_000))]
    pub backoff_max_ms: u64,
}

/// The captioning model.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Model bundle: a directory or an `s3://bucket/prefix`.
    #[schemars(extend("x-allowed" = "a directory or s3://bucket/prefix"))]
    pub path: String,
    /// Include the image embedding in every caption record.
    #[serde(default)]
    pub embeddings: bool,
    /// Beam width; the default is the bundle's.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub num_beams: Option<usize>,
    /// Variant of the bundle to run (`fusioncap variant` creates variants). `fp32` is the bundle
    /// itself. `auto` is `fp16` if the first of `runtime.providers` is a GPU provider and the bundle
    /// has that variant, otherwise `fp32`. A variant is a model of its own: its captions may differ,
    /// and they carry its digest.
    #[serde(default)]
    pub precision: Precision,
    /// Interval between checks for a new bundle in S3, in milliseconds. A changed bundle is loaded
    /// beside the current one and replaces it between two batches; a broken bundle is not used. 0
    /// disables the checks.
    #[serde(default = "defaults::reload_interval_ms")]
    #[schemars(range(min = 0, max = 86_400_000))]
    pub reload_interval_ms: u64,
}

/// Arithmetic precision of a bundle.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Auto,
    Fp32,
    Fp16,
    Int8,
}

impl Model {
    /// The bundle's directory; None for a bundle in S3.
    ///
    /// # Errors
    /// `ErrorKind::Config` if the directory does not exist. `Bundle::open` checks its content.
    pub fn directory(&self) -> Result<Option<&Path>> {
        if self.path.starts_with("s3://") {
            return Ok(None);
        }
        let dir = Path::new(&self.path);
        if dir.is_dir() {
            return Ok(Some(dir));
        }
        Err(Error::new(ErrorKind::Config, format!("model.path can't be '{}'", self.path))
            .with_context("allowed", "a directory that exists, or s3://bucket/prefix"))
    }
}

/// Image decoding.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Decode {
    /// `fast` downscales a large JPEG during decoding, in a fraction of the time: for photos of 12
    /// megapixels the embedding changes by at most 0.001 in cosine, and one caption in ten changes.
    /// `exact` decodes every pixel first, as CLIP's image processor does.
    pub mode: DecodeMode,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    Exact,
    #[default]
    Fast,
}

/// Batching of images for the engine.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Images per batch; shorter batches are padded to this size.
    #[schemars(range(min = 1, max = 1024))]
    pub size: usize,
    /// Maximum wait for a batch to fill, in milliseconds.
    #[schemars(range(min = 0, max = 60_000))]
    pub linger_ms: u64,
}

/// ONNX Runtime, threads and shutdown.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Execution providers in order of preference.
    #[schemars(length(min = 1))]
    pub providers: Vec<Provider>,
    /// Use the next provider, and the CPU after the last, if a provider is not available, and log a
    /// warning. Without fallback an unavailable provider is an error.
    pub fallback: bool,
    /// CUDA device.
    #[schemars(range(min = 0, max = 255))]
    pub device_id: i32,
    /// Maximum GPU memory for the tensors of each of the bundle's three graphs, in bytes; unlimited
    /// by default. For `cuda`.
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_u64))]
    pub cuda_memory_limit_bytes: Option<u64>,
    /// Use TensorFloat-32 (10 bits of mantissa) for products on GPUs that support it. For `cuda`.
    pub cuda_tf32: bool,
    /// Record the vision tower's work for a batch as a CUDA graph and replay it for every batch.
    /// For `cuda`.
    pub cuda_graphs: bool,
    /// Directory that keeps built engines between starts. For `tensorrt`.
    #[schemars(length(min = 1))]
    pub tensorrt_cache: Option<PathBuf>,
    /// Let engines compute in 16 bits. For `tensorrt`.
    pub tensorrt_fp16: bool,
    /// Concurrent sessions per graph of the bundle on the CPU, each with its own copy of the weights;
    /// 0 is one per core available to the process, at most 4.
    #[schemars(range(min = 0, max = 64))]
    pub sessions: usize,
    /// Threads per session; 0 is the session's share of the cores available to the process (a
    /// container's CPU limit counts).
    #[schemars(range(min = 0, max = 1024))]
    pub intra_threads: usize,
    /// Threads that decode images; 0 is one per core available to the process.
    #[schemars(range(min = 0, max = 1024))]
    pub decode_threads: usize,
    /// ONNX Runtime's shared library; the default is `ORT_DYLIB_PATH`.
    #[schemars(length(min = 1))]
    pub library: Option<PathBuf>,
    /// Time for work in flight to finish after SIGTERM, in milliseconds.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub drain_timeout_ms: u64,
    /// Time from SIGTERM until the platform kills the process, in milliseconds: Kubernetes'
    /// `terminationGracePeriodSeconds`. At least 5000 more than `runtime.drain_timeout_ms`.
    #[schemars(range(min = 1, max = 7_200_000))]
    pub termination_grace_ms: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Cpu,
    Cuda,
    Tensorrt,
}

/// Resource limits per reference and in total.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum object size, in bytes.
    #[schemars(range(min = 1, max = 4_294_967_296_u64))]
    pub max_object_bytes: u64,
    /// Maximum image size, in pixels (width times height in its header).
    #[schemars(range(min = 1, max = 4_294_967_296_u64))]
    pub max_pixels: u64,
    /// Maximum time to decode one image, in milliseconds, before its reference is dead-lettered. The
    /// decoding thread can't be stopped and stays occupied until it ends.
    #[schemars(range(min = 1, max = 600_000))]
    pub decode_timeout_ms: u64,
    /// Maximum references in flight per worker; at the maximum the worker stops reading. At least
    /// `batch.size`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight: usize,
    /// Maximum bytes of objects in memory, from the object store's response until they are decoded;
    /// at the maximum fetching waits. At least `limits.max_object_bytes`.
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64))]
    pub max_buffered_bytes: u64,
    /// References to the same object within this time, in milliseconds, share one result (request
    /// coalescing); 0 disables it. The result of a reference without version and ETag may be up to
    /// this old.
    #[schemars(range(min = 0, max = 3_600_000))]
    pub coalesce_window_ms: u64,
}

/// Probes and metrics over HTTP.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address of `/livez`, `/readyz` and `/metrics`.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub listen: SocketAddr,
}

mod defaults {
    pub fn group_protocol() -> String {
        super::Kafka::CLASSIC.into()
    }

    pub fn group() -> String {
        "fusioncap".into()
    }
    pub fn reload_interval_ms() -> u64 {
        60_000
    }
    pub fn connect_timeout_ms() -> u64 {
        300_000
    }

    pub fn commit_interval_ms() -> u64 {
        super::DEFAULT_COMMIT_INTERVAL_MS
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
            hedging: true,
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
            fallback: false,
            device_id: 0,
            cuda_memory_limit_bytes: None,
            cuda_tf32: true,
            cuda_graphs: false,
            tensorrt_cache: None,
            tensorrt_fp16: false,
            sessions: 0,
            intra_threads: 0,
            decode_threads: 0,
            library: None,
            drain_timeout_ms: 20_000,
            termination_grace_ms: 30_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_object_bytes: 64 << 20,
            max_pixels: 100_000_000,
            decode_timeout_ms: 30_000,
            max_in_flight: 512,
            max_buffered_bytes: 256 << 20,
            coalesce_window_ms: 5_000,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: ([0, 0, 0, 0], 8080).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_directory_that_exists_or_in_s3() {
        let model = |path: &str| Model { path: path.into(), ..Model::default() };
        assert_eq!(model("src").directory().unwrap(), Some(Path::new("src")));
        assert_eq!(model("s3://bucket/tiny").directory().unwrap(), None);
        let error = model("no/such").directory().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("model.path can't be 'no/such'"), "{error}");
    }
}
