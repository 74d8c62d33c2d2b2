//! A request to caption one image, whatever the shape of its message.

use std::collections::BTreeMap;

use serde_json::json;

use super::json::invalid;
use crate::error::Result;
use crate::object_name;

/// Longest field that names an image, in bytes: S3's own limit of a key. Dead letters and headers
/// repeat these fields, and a record that is too large for Kafka could never be published.
pub const MAX_FIELD_BYTES: usize = 1024;

/// One image to caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// The producer's own id, or one derived from topic, partition, offset and index.
    pub id: String,
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    /// Without quotes.
    pub etag: Option<String>,
    pub attributes: BTreeMap<String, String>,
}

impl ImageRequest {
    /// `s3://bucket/key`
    pub fn uri(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    /// The same image as a request of our own shape.
    pub fn to_json(&self) -> Vec<u8> {
        let ImageRequest { id, version_id, etag, attributes, .. } = self;
        let mut fields = json!({"uri": self.uri(), "id": id, "attributes": attributes});
        for (name, value) in [("version_id", version_id), ("etag", etag)] {
            if let Some(text) = value {
                fields[name] = text.as_str().into();
            }
        }
        fields.to_string().into_bytes()
    }

    /// Refuses fields that are too long to publish, and names that must not be fetched.
    pub fn check(&self) -> Result<()> {
        self.check_lengths()?;
        object_name::check_bucket(&self.bucket)?;
        object_name::check_key(&self.key)
    }

    fn check_lengths(&self) -> Result<()> {
        let fields = [
            ("id", Some(&self.id)),
            ("bucket", Some(&self.bucket)),
            ("key", Some(&self.key)),
            ("version_id", self.version_id.as_ref()),
            ("etag", self.etag.as_ref()),
        ];
        for (name, value) in fields {
            let bytes = value.map_or(0, String::len);
            if bytes > MAX_FIELD_BYTES {
                return Err(invalid("a field is too long")
                    .with_context("field", name)
                    .with_context("bytes", bytes)
                    .with_context("allowed", MAX_FIELD_BYTES));
            }
        }
        Ok(())
    }
}

/// The requests in one message on `images.in`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// In the order of the message's records.
    pub images: Vec<ImageRequest>,
    /// Event records that create no object.
    pub skipped: usize,
}
