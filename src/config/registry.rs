//! The section `registry`, and what commands read that work on the topics alone.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kafka, Secret};

/// The schema registry: Confluent's API, which Apicurio and Karapace speak too, and Confluent's
/// wire format.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// URL under which the API stands, such as `http://registry:8081`, or `/apis/ccompat/v7` of
    /// an Apicurio. Without it nothing is framed, and a framed request is a dead letter.
    #[schemars(extend("x-allowed" = "an http:// or https:// URL"))]
    pub url: Option<String>,
    /// How captions and dead letters are written: `json` is plain JSON; the others stand behind
    /// Confluent's prefix, which names their schema. Requests may come in any of the three,
    /// whatever is set here.
    pub format: Format,
    /// Register the schemas at the start; otherwise they are only looked up, and the worker does
    /// not start where one is missing.
    pub auto_register: bool,
    /// Under which subject a schema stands: `topic-name` is `<topic>-value`, `record-name` the
    /// record's full name, `topic-record-name` is `<topic>-<record's full name>`.
    pub subject_name_strategy: SubjectNameStrategy,
    /// For basic authentication.
    #[schemars(length(min = 1))]
    pub username: Option<String>,
    /// Goes with `registry.username`.
    #[schemars(length(min = 1))]
    pub password: Option<Secret>,
    /// Instead of `registry.username`.
    #[schemars(length(min = 1))]
    pub bearer_token: Option<Secret>,
    /// File of PEM certificates that the registry's own must be signed by; the system's by default.
    #[schemars(length(min = 1))]
    pub ca_file: Option<PathBuf>,
    /// Deadline of one request in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub timeout_ms: u64,
}

/// How a record is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    #[default]
    Json,
    JsonSchema,
    Avro,
}

/// Confluent's three ways to name a subject.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SubjectNameStrategy {
    #[default]
    TopicName,
    RecordName,
    TopicRecordName,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            url: None,
            format: Format::Json,
            auto_register: true,
            subject_name_strategy: SubjectNameStrategy::TopicName,
            username: None,
            password: None,
            bearer_token: None,
            ca_file: None,
            timeout_ms: 10_000,
        }
    }
}

/// What it takes to read and write the topics; the other sections may be absent.
#[derive(Clone, Debug, Deserialize)]
pub struct Topics {
    pub kafka: Kafka,
    #[serde(default)]
    pub registry: Registry,
}
