//! The records on the three topics: requests on `images.in`, captions on `captions.out`, dead
//! letters and their markers on `images.dlq`. Their schemas are the files of `schemas/`.
//!
//! A message on `images.in` has one of three shapes, recognised by its content: our own
//! [`request`], an S3 notification ([`s3_event`]), or either inside a CloudEvent
//! ([`cloud_event`]). One message may name several images; they share its offset and differ in
//! their index.

mod caption_record;
mod cloud_event;
mod dead_letter;
pub mod header;
mod image_request;
mod json;
mod model;
mod position;
mod redriven;
mod request;
mod retained;
mod s3_event;
mod trace_context;

use serde_json::Value;

pub use caption_record::CaptionRecord;
pub use dead_letter::{DeadLetter, FailedStage};
pub use image_request::{ImageRequest, Requests};
pub use model::Identity;
pub use position::SourcePosition;
pub use redriven::Marker;
pub use retained::RetainedParts;
pub use trace_context::{TRACEPARENT, TraceContext};

use crate::error::Result;
pub use crate::kafka::headers::RawHeader;
pub use crate::kafka::record::RawRecord;
use json::{invalid, parse_json};

/// Most bytes in all dead letters of one message: each repeats the whole message, and a message of a
/// megabyte can name thousands of images.
const MAX_REPEATED_BYTES: usize = 64 << 20;

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
            .with_context("images", images)
            .with_context("bytes", payload.len())
            .with_context(
                "allowed",
                format_args!("{MAX_REPEATED_BYTES} bytes, images times bytes"),
            ));
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
