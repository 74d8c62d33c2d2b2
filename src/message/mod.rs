//! The records on the three topics: what a message on `images.in` asks for, and what is written
//! to `captions.out` and `images.dlq`. Their schemas are the files of `schemas/`.
//!
//! A message is one of three shapes, told apart by its content: our own [`request`], an S3
//! [`s3_event`] notification, or either inside a CloudEvent ([`cloud_event`]). One message may
//! name several images; they share its offset and are told apart by their index.

mod cloud_event;
mod model;
mod record;
mod redriven;
mod request;
mod retained;
mod s3_event;
mod trace_context;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

pub use model::Identity;
pub use record::{CaptionRecord, DeadLetter, Stage, header};
pub use redriven::{Marker, Place};
pub use retained::RetainedParts;
pub use trace_context::{TRACEPARENT, TraceContext};

use crate::error::{Error, ErrorKind, Result};
pub use crate::kafka::headers::RawHeader;
pub use crate::kafka::record::RawRecord;
use crate::object_name;

/// The UUIDv5 namespace of derived ids (RFC 9562).
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_b7a0_52c4_5e0f_9a3b_7d1c_4e8f_2b60);

/// Longest field that names an image, in bytes: S3's own limit of a key. Dead letters and headers
/// repeat these fields, and a record that outgrows what Kafka takes could never be published.
const MAX_FIELD_BYTES: usize = 1024;

/// Most bytes that the dead letters of one message may repeat: each has all of it, and a message
/// of a megabyte can name thousands of images.
const MAX_REPEATED_BYTES: usize = 64 << 20;

/// Where a message came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
}

impl SourcePosition {
    /// The id of the image at `index` among those of this message, the same at every reading.
    pub fn id(&self, index: usize) -> String {
        let name = format!("{}/{}/{}/{index}", self.topic, self.partition, self.offset);
        Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string()
    }
}

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
        request::write(self)
    }

    /// Refuses what could not be published again, and what no request may be made for.
    fn check(&self) -> Result<()> {
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
                    .with("field", name)
                    .with("bytes", bytes)
                    .with("allowed", MAX_FIELD_BYTES));
            }
        }
        Ok(())
    }
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
///
/// # Errors
/// `ErrorKind::InvalidMessage` or `UnsupportedUri`, with one line that says what is wrong where.
pub fn parse(payload: &[u8], headers: &[RawHeader], source: &SourcePosition) -> Result<Requests> {
    let mut requests = read(payload, headers, source)?;
    requests.images.iter().try_for_each(ImageRequest::check)?;
    // Put back from a dead letter: a derived id would change with the offset.
    if let [image] = requests.images.as_mut_slice()
        && let Some(id) = redriven::id(headers)
    {
        image.id = id;
    }
    Ok(requests)
}

fn read(payload: &[u8], headers: &[RawHeader], source: &SourcePosition) -> Result<Requests> {
    let message = json(payload)?;
    let message = if cloud_event::is_binary(headers) {
        cloud_event::check_binary(headers)?;
        message
    } else if cloud_event::is_structured(&message) {
        cloud_event::data(message)?
    } else {
        message
    };
    let requests = parse_plain(message, source)?;
    let images = requests.images.len();
    if images > 1 && images.saturating_mul(payload.len()) > MAX_REPEATED_BYTES {
        return Err(invalid("the message names too many images for its length")
            .with("images", images)
            .with("bytes", payload.len())
            .with("allowed", format_args!("{MAX_REPEATED_BYTES} bytes, images times bytes")));
    }
    Ok(requests)
}

/// Our request or an S3 event notification.
fn parse_plain(message: Value, source: &SourcePosition) -> Result<Requests> {
    if s3_event::is_notification(&message) {
        return s3_event::parse(message, source);
    }
    Ok(Requests { images: vec![request::parse(message, source)?], skipped: 0 })
}

fn json(payload: &[u8]) -> Result<Value> {
    if payload.is_empty() {
        return Err(invalid("the message is empty"));
    }
    serde_json::from_slice(payload)
        .map_err(|error| invalid("the message is no JSON").because(error))
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidMessage, reason)
}
