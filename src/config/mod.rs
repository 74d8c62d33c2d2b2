//! The configuration: one YAML file, then the environment, then flags, checked into one type.
//!
//! Every field has a default or is required; every field is also an environment variable
//! (`kafka.brokers` is `FUSIONCAP_KAFKA__BROKERS`). Unknown fields are errors. Secrets are
//! redacted wherever a configuration is printed.
//!
//! The types below are the only place where a field is described: their JSON Schema (derived)
//! drives the checks in [`field`] and `docs/configuration.md` ([`reference`]); [`load`] layers
//! the sources; [`validate`] holds the rules that join fields or need a parser.

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

/// Kafka Streams commits as often where it is exactly-once.
pub const DEFAULT_COMMIT_INTERVAL_MS: u64 = 100;

/// What the worker runs with.
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

/// Where references come from, and where captions and dead letters go.
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
    /// Unique for each running worker, best stable for its slot (a StatefulSet ordinal).
    /// Default: `<group>-<host name>`.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub transactional_id: Option<String>,
    /// Static membership (KIP-345): this member's name, unique in the group.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub group_instance_id: Option<String>,
    /// How the group shares the partitions out: `classic`, or `consumer` (KIP-848), where the
    /// brokers do it and their own settings hold for sessions. With `consumer` a transaction that
    /// meets a rebalance is refused more often, and done again.
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
    /// How long a worker that starts waits for the first broker to answer, in milliseconds. Later it
    /// waits without end.
    #[serde(default = "defaults::connect_timeout_ms")]
    #[schemars(range(min = 0, max = 86_400_000))]
    pub connect_timeout_ms: u64,
    /// A transaction begins no sooner than this after the one before, in milliseconds, unless a
    /// quarter of `limits.max_in_flight` is finished: how long a caption may wait for others to be
    /// committed with.
    #[serde(default = "defaults::commit_interval_ms")]
    #[schemars(range(min = 0, max = 10_000))]
    pub commit_interval_ms: u64,
    /// Any librdkafka property, for consumer and producer alike; those that exactly-once
    /// delivery rests on are refused.
    #[serde(default)]
    pub properties: Properties,
}

impl Kafka {
    pub const CLASSIC: &str = "classic";
    pub const CONSUMER: &str = "consumer";
}

/// Where the images are.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// Endpoint URL; the default is AWS's own for the region.
    #[schemars(extend("x-allowed" = "an http:// or https:// URL"))]
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    #[schemars(length(min = 1))]
    pub region: String,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`.
    pub force_path_style: bool,
    /// Static credentials; without them the AWS credential chain is asked.
    #[schemars(length(min = 1))]
    pub access_key_id: Option<String>,
    /// Goes with `s3.access_key_id`.
    #[schemars(length(min = 1))]
    pub secret_access_key: Option<Secret>,
    /// Only for temporary static credentials.
    #[schemars(length(min = 1))]
    pub session_token: Option<Secret>,
    /// Buckets that references may name, whole (`photos`) or the keys under a prefix
    /// (`photos/public/`); empty allows every bucket.
    #[schemars(extend("x-allowed" = "a list of bucket or bucket/prefix/"))]
    pub allowed_buckets: Vec<String>,
    /// Most requests under way at once; there are as many as keep the decoders supplied.
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: usize,
    /// Whole-request deadline in milliseconds, the body included.
    #[schemars(range(min = 1, max = 600_000))]
    pub timeout_ms: u64,
    /// Where an object has not been read after so many milliseconds, ask for it once more and take
    /// what comes first, for at most one request in twenty; 0 never does. Below `s3.timeout_ms`.
    #[schemars(range(min = 0, max = 600_000))]
    pub hedge_after_ms: u64,
    /// Tries for one object before its reference is dead-lettered.
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: u32,
    /// First pause between two tries, in milliseconds; each next one is longer.
    #[schemars(range(min = 1, max = 600_000))]
    pub backoff_initial_ms: u64,
    /// Longest pause between two tries, in milliseconds; not below `s3.backoff_initial_ms`.
    #[schemars(range(min = 1, max = 600_000))]
    pub backoff_max_ms: u64,
}

/// What captions them.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Bundle: a directory or an `s3://bucket/prefix`.
    #[schemars(extend("x-allowed" = "a directory or s3://bucket/prefix"))]
    pub path: String,
    /// Include the image embedding in every caption record.
    #[serde(default)]
    pub embeddings: bool,
    /// Beam width; the bundle's own by default.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub num_beams: Option<usize>,
    /// Which of the bundle's variants runs (`fusioncap variant` makes them): `fp32` is the bundle
    /// itself, `auto` is `fp16` where the first of `runtime.providers` is a GPU's and there is such
    /// a variant, and the bundle itself everywhere else. A variant is a model of its own: its
    /// captions may differ, and bear its digest.
    #[serde(default)]
    pub precision: Precision,
    /// How often a bundle in S3 is looked at, in milliseconds: one that has changed is loaded
    /// beside the one in use and takes its place between two batches; one that is broken leaves it
    /// in use. 0 never looks.
    #[serde(default = "defaults::reload_interval_ms")]
    #[schemars(range(min = 0, max = 86_400_000))]
    pub reload_interval_ms: u64,
}

/// How precise a bundle's arithmetic is.
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
    /// The bundle's directory; none where the bundle is in S3.
    ///
    /// # Errors
    /// `ErrorKind::Config` where there is no such directory. (A directory that holds no sound
    /// bundle is no matter of configuration: `Bundle::open` says what is wrong with it.)
    pub fn directory(&self) -> Result<Option<&Path>> {
        if self.path.starts_with("s3://") {
            return Ok(None);
        }
        let dir = Path::new(&self.path);
        if dir.is_dir() {
            return Ok(Some(dir));
        }
        Err(Error::new(ErrorKind::Config, format!("model.path can't be '{}'", self.path))
            .with("allowed", "a directory that exists, or s3://bucket/prefix"))
    }
}

/// How images become pixels.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Decode {
    /// `fast` has a large JPEG made smaller while it is decoded, which takes a fraction of the
    /// time; photos of 12 megapixels keep their embedding within 0.001 in cosine, and one caption
    /// in ten gets other words. `exact` computes every pixel first, as CLIP's own image processor
    /// does.
    pub mode: DecodeMode,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    Exact,
    #[default]
    Fast,
}

/// How images are gathered for the engine.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Images a batch; the engine runs at this size, short batches are padded.
    #[schemars(range(min = 1, max = 1024))]
    pub size: usize,
    /// Longest wait for a batch to fill, in milliseconds.
    #[schemars(range(min = 0, max = 60_000))]
    pub linger_ms: u64,
}

/// What the worker runs on.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Execution providers in order of preference.
    #[schemars(length(min = 1))]
    pub providers: Vec<Provider>,
    /// Where a provider can't be had, go on with the next one on the list, and behind the last
    /// with the CPU, with a warning; otherwise that is an error.
    pub fallback: bool,
    /// CUDA device.
    #[schemars(range(min = 0, max = 255))]
    pub device_id: i32,
    /// Most memory of the GPU that each of the bundle's three graphs may take for its tensors, in
    /// bytes; no limit by default. For `cuda`.
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_u64))]
    pub cuda_memory_limit_bytes: Option<u64>,
    /// Multiply in TensorFloat-32 (10 bits of mantissa) on GPUs that can. For `cuda`.
    pub cuda_tf32: bool,
    /// Record what the GPU does for a batch in the vision tower once, as a CUDA graph, and replay
    /// it for every batch. For `cuda`.
    pub cuda_graphs: bool,
    /// Directory in which built engines are kept from one start to the next. For `tensorrt`.
    #[schemars(length(min = 1))]
    pub tensorrt_cache: Option<PathBuf>,
    /// Let engines compute in 16 bits. For `tensorrt`.
    pub tensorrt_fp16: bool,
    /// Sessions of each of a bundle's graphs that work at once on the CPU, each with its own copy
    /// of the weights; 0 is one for each core that the process may use, at most 4.
    #[schemars(range(min = 0, max = 64))]
    pub instances: usize,
    /// Threads of each of these sessions; 0 is its share of the cores that the process may use
    /// (a container's CPU limit counts).
    #[schemars(range(min = 0, max = 1024))]
    pub intra_threads: usize,
    /// Threads that decode images; 0 is one for each core that the process may use.
    #[schemars(range(min = 0, max = 1024))]
    pub decode_threads: usize,
    /// ONNX Runtime's shared library; `ORT_DYLIB_PATH` by default.
    #[schemars(length(min = 1))]
    pub library: Option<PathBuf>,
    /// How long SIGTERM lets work in flight finish, in milliseconds.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub drain_timeout_ms: u64,
    /// How long after SIGTERM the platform kills the process, in milliseconds: Kubernetes'
    /// `terminationGracePeriodSeconds`. More than `runtime.drain_timeout_ms` and 5 seconds.
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

/// What one reference, and all of them together, may cost.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest object that is fetched, in bytes.
    #[schemars(range(min = 1, max = 4_294_967_296_u64))]
    pub max_object_bytes: u64,
    /// Largest image that is decoded, in pixels (width times height as its header claims).
    #[schemars(range(min = 1, max = 4_294_967_296_u64))]
    pub max_pixels: u64,
    /// Longest time that decoding one image may take, in milliseconds, before its reference is
    /// dead-lettered. Its thread can't be stopped and keeps its place until it ends.
    #[schemars(range(min = 1, max = 600_000))]
    pub decode_timeout_ms: u64,
    /// References in flight in one worker; with so many, no more are taken in. Not below `batch.size`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight: usize,
    /// Bytes of objects in memory at once, from the answer of the object store until they are
    /// decoded; above it fetching waits. Not below `limits.max_object_bytes`.
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64))]
    pub fetch_bytes: u64,
    /// References to one object within so many milliseconds share one answer; 0 turns that off.
    /// One that names neither version nor ETag may be answered with the object's state of up to
    /// so long ago.
    #[schemars(range(min = 0, max = 3_600_000))]
    pub repeat_window_ms: u64,
}

/// Probes and metrics.
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
            hedge_after_ms: 0,
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
            instances: 0,
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
            fetch_bytes: 256 << 20,
            repeat_window_ms: 5_000,
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
