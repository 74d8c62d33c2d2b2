//! The caption of one image, a record of `captions.out`.
//!
//! Column names and types are a contract with lake tables: columns may be added, never changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::{now, to_json};
use super::{Identity, ImageRequest, SourcePosition};
use crate::error::Result;

/// A caption (`schemas/caption.v1.schema.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct CaptionRecord {
    pub id: String,
    pub uri: String,
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    pub content_type: String,
    /// Width of the source image, in pixels.
    pub width: u32,
    /// Height of the source image, in pixels.
    pub height: u32,
    pub caption: String,
    /// Mean log-probability per token.
    pub score: f32,
    pub model_name: String,
    pub model_version: String,
    pub model_digest: String,
    pub source_topic: String,
    pub source_partition: i32,
    pub source_offset: i64,
    /// RFC 3339, UTC, microseconds.
    pub captioned_at: String,
    pub attributes: BTreeMap<String, String>,
    /// The image's embedding, unit length; only with `model.embeddings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<f32>>,
}

impl CaptionRecord {
    /// A record with the fields of the request and the model; the caller fills in the others.
    pub fn new(source: &SourcePosition, request: &ImageRequest, model: &Identity) -> Self {
        Self {
            id: request.id.clone(),
            uri: request.uri(),
            bucket: request.bucket.clone(),
            key: request.key.clone(),
            version_id: request.version_id.clone(),
            etag: request.etag.clone(),
            content_type: String::new(),
            width: 0,
            height: 0,
            caption: String::new(),
            score: 0.0,
            model_name: model.name.clone(),
            model_version: model.version.clone(),
            model_digest: model.digest.clone(),
            source_topic: source.topic.to_string(),
            source_partition: source.partition,
            source_offset: source.offset,
            captioned_at: now(),
            attributes: request.attributes.clone(),
            embedding: None,
        }
    }

    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json(self)
    }
}
