//! Our own request: `{"uri": "s3://bucket/key", ...}` (`schemas/image-request.v1.schema.json`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::image_request::ImageRequest;
use super::json::invalid;
use super::position::SourcePosition;
use crate::error::{Error, ErrorKind, Result};

/// An unknown field is an error: a misspelt one would otherwise be ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    uri: String,
    id: Option<String>,
    version_id: Option<String>,
    etag: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

pub fn parse(message: Value, source: &SourcePosition) -> Result<ImageRequest> {
    let fields: Fields = serde_json::from_value(message)
        .map_err(|error| invalid("the message is not an image request").with_source(error))?;
    let (bucket, key) = split_uri(&fields.uri)?;
    let etag = fields.etag.map(|etag| etag.trim_matches('"').to_owned());
    Ok(ImageRequest {
        id: fields.id.filter(|id| !id.is_empty()).unwrap_or_else(|| source.id(0)),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        version_id: fields.version_id,
        etag,
        attributes: fields.attributes,
    })
}

/// Bucket and key of an `s3://bucket/key` URI; the key is taken as it stands, not unescaped.
fn split_uri(uri: &str) -> Result<(&str, &str)> {
    let parts = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    match parts {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => Ok((bucket, key)),
        _ => Err(Error::new(ErrorKind::UnsupportedUri, "uri is not supported")
            .with_context("value", uri.chars().take(200).collect::<String>())
            .with_context("allowed", "s3://bucket/key")),
    }
}
