//! What `fusioncap redrive` writes: headers on the reference that it puts back on `images.in`, and
//! in the same transaction a marker on `images.dlq`, so that no dead letter is put back twice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::record::{header, now};
use super::{DeadLetter, MAX_FIELD_BYTES, RawHeader};
use crate::error::Result;

/// A record's place, `topic/partition/offset` in headers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // The name of a topic has no slash.
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, offset] = parts[..] else { return Err(()) };
        Ok(Self {
            topic: topic.to_owned(),
            partition: partition.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
    }
}

/// The record that marks a dead letter as redriven (`schemas/dead-letter-marker.v1.schema.json`).
/// It is known by its header [`header::REDRIVEN`], whatever its value.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Marker {
    /// Of the image.
    pub id: String,
    /// Of the dead letter.
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
    /// The marker of `letter`, which stands at `place`.
    pub fn new(letter: &DeadLetter, place: &Place, times: u32) -> Self {
        Self {
            id: letter.id.clone(),
            code: letter.code.clone(),
            redriven_topic: place.topic.clone(),
            redriven_partition: place.partition,
            redriven_offset: place.offset,
            redriven_times: times,
            redriven_at: now(),
        }
    }

    /// Whether a record of `images.dlq` with these headers is a marker rather than a dead letter.
    pub fn is_one(headers: &[RawHeader]) -> bool {
        RawHeader::find(headers, header::REDRIVEN).is_some()
    }

    /// Which dead letter a record with these headers marks.
    pub fn marked(headers: &[RawHeader]) -> Option<Place> {
        let value = RawHeader::find(headers, header::REDRIVEN)?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}

/// The id that a redriven reference keeps.
pub(super) fn id(headers: &[RawHeader]) -> Option<String> {
    let value = RawHeader::find(headers, header::REDRIVEN_ID)?;
    let fits = |id: &&str| (1..=MAX_FIELD_BYTES).contains(&id.len());
    std::str::from_utf8(value).ok().filter(fits).map(str::to_owned)
}
