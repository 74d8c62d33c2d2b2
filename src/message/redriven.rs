//! The records of `fusioncap redrive`: headers on the reference that it puts back on `images.in`, and
//! in the same transaction a marker on `images.dlq`, so that no dead letter is put back twice.

use serde::{Deserialize, Serialize};

use super::image_request::MAX_FIELD_BYTES;
use super::json::now;
use super::{DeadLetter, RawHeader, SourcePosition, header};

/// The record that marks a dead letter as redriven (`schemas/dead-letter-marker.v1.schema.json`).
/// Its header [`header::REDRIVEN`] identifies it, whatever the header's value.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Marker {
    /// The image's id.
    pub id: String,
    /// The dead letter's code.
    pub code: String,
    pub redriven_topic: String,
    pub redriven_partition: i32,
    pub redriven_offset: i64,
    /// How often this image has been redriven, this time included.
    pub redriven_times: u32,
    /// RFC 3339, UTC, microseconds.
    pub redriven_at: String,
}

impl Marker {
    /// The marker of `letter`, which stands at `position`.
    pub fn new(letter: &DeadLetter, position: &SourcePosition, times: u32) -> Self {
        Self {
            id: letter.id.clone(),
            code: letter.code.clone(),
            redriven_topic: position.topic.to_string(),
            redriven_partition: position.partition,
            redriven_offset: position.offset,
            redriven_times: times,
            redriven_at: now(),
        }
    }

    /// Whether a record of `images.dlq` with these headers is a marker rather than a dead letter.
    pub fn is_marker(headers: &[RawHeader]) -> bool {
        RawHeader::find(headers, header::REDRIVEN).is_some()
    }

    /// The position of the dead letter that a record with these headers marks.
    pub fn marked_letter(headers: &[RawHeader]) -> Option<SourcePosition> {
        let value = RawHeader::find(headers, header::REDRIVEN)?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}

/// The id in the headers of a redriven reference.
pub(super) fn parse_id(headers: &[RawHeader]) -> Option<String> {
    let value = RawHeader::find(headers, header::REDRIVEN_ID)?;
    let fits = |id: &&str| (1..=MAX_FIELD_BYTES).contains(&id.len());
    std::str::from_utf8(value).ok().filter(fits).map(str::to_owned)
}
