//! The dead letter of one image, a record of `images.dlq`: why it has no caption, and the message
//! that named it.
//!
//! Column names and types are a contract with lake tables: columns may be added, never changed.

use serde::{Deserialize, Serialize};

use super::json::{now, to_json};
use super::retained::{LetterHeader, RetainedParts, decode_base64, encode_base64};
use super::{ImageRequest, RawRecord, SourcePosition};
use crate::error::{Error, Result};

/// Longest reason of a dead letter, in characters; a cause may quote the message.
const MAX_REASON: usize = 1000;

/// The stage of the pipeline at which an image failed.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FailedStage {
    Consume,
    Fetch,
    Decode,
    Caption,
}

/// An image that can't be captioned (`schemas/dead-letter.v1.schema.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct DeadLetter {
    pub id: String,
    /// Absent where the message could not be parsed.
    pub uri: Option<String>,
    /// One of [`ErrorKind::DEAD_LETTERS`](crate::error::ErrorKind::DEAD_LETTERS).
    pub code: String,
    pub reason: String,
    pub stage: FailedStage,
    /// Attempts made, at least 1.
    pub attempts: u32,
    pub source_topic: String,
    pub source_partition: i32,
    pub source_offset: i64,
    /// The image's index in its message.
    pub source_index: u32,
    /// RFC 3339, UTC, microseconds.
    pub failed_at: String,
    /// The parts of the original message below.
    #[serde(default)]
    pub original: RetainedParts,
    /// The original payload, Base64; empty where the message had none or it is left out.
    pub payload_base64: String,
    /// The original key, Base64; absent where the message had none.
    pub key_base64: Option<String>,
    /// The original headers, in order.
    #[serde(default)]
    pub headers: Vec<LetterHeader>,
}

impl DeadLetter {
    /// The dead letter of the image at `index`; `request` is absent where the message itself
    /// could not be parsed.
    pub fn new(
        source: &SourcePosition,
        index: usize,
        request: Option<&ImageRequest>,
        error: &Error,
        (stage, attempts): (FailedStage, u32),
        original: &RawRecord,
    ) -> Self {
        Self {
            id: request.map_or_else(|| source.id(index), |image| image.id.clone()),
            uri: request.map(ImageRequest::uri),
            code: error.kind().code().to_owned(),
            reason: one_line(&error.chain()),
            stage,
            attempts,
            source_topic: source.topic.to_string(),
            source_partition: source.partition,
            source_offset: source.offset,
            source_index: u32::try_from(index).unwrap_or(u32::MAX),
            failed_at: now(),
            original: if original.payload.is_some() {
                RetainedParts::Whole
            } else {
                RetainedParts::NoPayload
            },
            payload_base64: encode_base64(original.payload.as_deref().unwrap_or_default()),
            key_base64: original.key.as_deref().map(encode_base64),
            headers: original.headers.iter().map(LetterHeader::from).collect(),
        }
    }

    /// Leaves the original out, for a letter that would be too large for Kafka.
    pub fn leave_out_original(&mut self) {
        self.original = RetainedParts::LeftOut;
        self.payload_base64.clear();
        self.key_base64 = None;
        self.headers.clear();
        self.reason.push_str("; the original bytes do not fit: read them at the source offset");
    }

    /// The original message; None where it was left out.
    ///
    /// # Errors
    /// `ErrorKind::InvalidMessage` where a field is not Base64.
    pub fn original_record(&self) -> Result<Option<RawRecord>> {
        let payload = match self.original {
            RetainedParts::LeftOut => return Ok(None),
            RetainedParts::NoPayload => None,
            RetainedParts::Whole => Some(decode_base64("payload_base64", &self.payload_base64)?),
        };
        let key =
            self.key_base64.as_deref().map(|text| decode_base64("key_base64", text)).transpose()?;
        let headers = self.headers.iter().map(LetterHeader::to_raw).collect::<Result<_>>()?;
        Ok(Some(RawRecord { key, payload, headers }))
    }

    /// The position of this image's reference.
    pub fn source_position(&self) -> SourcePosition {
        SourcePosition {
            topic: self.source_topic.as_str().into(),
            partition: self.source_partition,
            offset: self.source_offset,
        }
    }

    pub fn to_json(&self) -> Result<Vec<u8>> {
        to_json(self)
    }
}

/// `text` on one line, cut off after `MAX_REASON` characters.
fn one_line(text: &str) -> String {
    let plain = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().take(MAX_REASON).map(plain).collect()
}
