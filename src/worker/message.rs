//! The records on the three topics and how they are read and written.

use std::collections::BTreeMap;

use crate::error::Result;

/// Where a message came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    pub topic: std::sync::Arc<str>,
    pub partition: i32,
    pub offset: i64,
}

/// One image to caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// The producer's own id, or one derived from topic, partition, offset and index.
    pub id: String,
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    pub attributes: BTreeMap<String, String>,
}

/// What one message on `images.in` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// In the order of the message's records.
    pub images: Vec<ImageRequest>,
    /// Event records that create no object.
    pub skipped: usize,
}

/// Reads a message: our request, an S3 event notification, or either inside a CloudEvent
/// (structured, or binary with `ce_` headers).
pub fn parse(
    _payload: &[u8],
    _headers: &[(String, Vec<u8>)],
    _source: &SourcePosition,
) -> Result<Requests> {
    todo!()
}
