//! The section `registry`, and the configuration of commands that only read and write topics.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kafka, Secret};

/// The schema registry, with Confluent's API (also of Apicurio and Karapace) and wire format.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Base URL of the API: `http://registry:8081`, or a URL with `/apis/ccompat/v7` for Apicurio.
    /// Without it records are not framed, and a framed request is dead-lettered.
    #[schemars(extend("x-allowed" = "an http:// or https:// URL"))]
    pub url: Option<String>,
    /// Format of captions and dead letters: `json` is plain JSON; the others have Confluent's prefix
    /// with the schema's id. Requests may use any of the three formats.
    pub format: Format,
    /// Register the schemas at startup. Otherwise the worker only looks them up, and does not start
    /// if one is missing.
    pub auto_register: bool,
    /// Subject of a schema: `topic-name` is `<topic>-value`, `record-name` is the record's full name,
    /// `topic-record-name` is `<topic>-<record's full name>`.
    pub subject_name_strategy: SubjectNameStrategy,
    /// User name for basic authentication.
    #[schemars(length(min = 1))]
    pub username: Option<String>,
    /// Password of `registry.username`.
    #[schemars(length(min = 1))]
    pub password: Option<Secret>,
    /// Bearer token, instead of `registry.username`.
    #[schemars(length(min = 1))]
    pub bearer_token: Option<Secret>,
    /// PEM file of the certificate authorities trusted for the registry; the default is the
    /// system's.
    #[schemars(length(min = 1))]
    pub ca_file: Option<PathBuf>,
    /// Deadline of a request, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub timeout_ms: u64,
}

/// Format of a record.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    #[default]
    Json,
    JsonSchema,
    Avro,
}

/// Confluent's subject name strategies.
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

/// The sections needed to read and write the topics; the others may be absent.
#[derive(Clone, Debug, Deserialize)]
pub struct Topics {
    pub kafka: Kafka,
    #[serde(default)]
    pub registry: Registry,
}
