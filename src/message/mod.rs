//! The records on the three topics: requests on `images.in`, captions on `captions.out`, dead
//! letters and their markers on `images.dlq`. Their schemas are the files of `schemas/`.
//!
//! A message on `images.in` has one of three shapes, recognised by its content: our own
//! [`request`], an S3 notification ([`s3_event`]), or either inside a CloudEvent
//! ([`cloud_event`]). One message may name several images; they share its offset and differ in
//! their index.

mod cloud_event;
mod model;
mod record;
mod redriven;
mod request;
mod retained;
mod s3_event;
mod trace_context;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

pub use model::Identity;
pub use record::{CaptionRecord, DeadLetter, Stage, header};
pub use redriven::Marker;
pub use retained::RetainedParts;
pub use trace_context::{TRACEPARENT, TraceContext};

use crate::error::{Error, ErrorKind, Result};
pub use crate::kafka::headers::RawHeader;
pub use crate::kafka::record::RawRecord;
use crate::object_name;

/// The UUIDv5 namespace of derived ids (RFC 9562).
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_b7a0_52c4_5e0f_9a3b_7d1c_4e8f_2b60);

/// Longest field that names an image, in bytes: S3's own limit of a key. Dead letters and headers
/// repeat these fields, and a record that is too large for Kafka could never be published.
const MAX_FIELD_BYTES: usize = 1024;

/// Most bytes in all dead letters of one message: each repeats the whole message, and a message of a
/// megabyte can name thousands of images.
const MAX_REPEATED_BYTES: usize = 64 << 20;

/// Where a record stands; `topic/partition/offset` as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
}

impl SourcePosition {
    /// The derived id of the image at `index` of this message.
    pub fn id(&self, index: usize) -> String {
        let name = format!("{self}/{index}");
        Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string()
    }
}

impl fmt::Display for SourcePosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for SourcePosition {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // A topic's name has no slash.
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, offset] = parts[..] else { return Err(()) };
        Ok(Self {
            topic: topic.into(),
            partition: partition.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
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
        request::to_json(self)
    }

    /// Refuses fields that are too long to publish, and names that must not be fetched.
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

/// The requests in one message on `images.in`.
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
    let mut requests = parse_envelope(payload, headers, source)?;
    requests.images.iter().try_for_each(ImageRequest::check)?;
    // Redriven from a dead letter: a derived id would change with the offset.
    if let [image] = requests.images.as_mut_slice()
        && let Some(id) = redriven::parse_id(headers)
    {
        image.id = id;
    }
    Ok(requests)
}

/// The requests before any check of their fields.
fn parse_envelope(
    payload: &[u8],
    headers: &[RawHeader],
    source: &SourcePosition,
) -> Result<Requests> {
    let message = parse_json(payload)?;
    let message = if cloud_event::is_binary(headers) {
        cloud_event::check_binary(headers)?;
        message
    } else if cloud_event::is_structured(&message) {
        cloud_event::take_data(message)?
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

fn parse_json(payload: &[u8]) -> Result<Value> {
    if payload.is_empty() {
        return Err(invalid("the message is empty"));
    }
    serde_json::from_slice(payload)
        .map_err(|error| invalid("the message is not JSON").because(error))
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidMessage, reason)
}
