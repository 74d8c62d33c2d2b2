//! Which letters the filter admits, and which of them are marked already. Positions only: no record
//! is kept.
//!
//! Memory: a position is 16 bytes in a tree; a million letters are about 30 MB.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use rdkafka::message::Message as _;

use super::filter::Filter;
use super::formats::Formats;
use super::summary::Summary;
use crate::config::Kafka;
use crate::error::Result;
use crate::kafka::headers::read_headers;
use crate::message::Marker;
use crate::reader::{Ranges, Reader};

/// Partition and offset of a letter.
type LetterPosition = (i32, i64);

/// The content of the dead-letter topic.
#[derive(Debug, Default)]
pub struct Survey {
    /// Admitted and not marked.
    pending: BTreeSet<LetterPosition>,
    /// By code: admitted letters, and how many of them are marked.
    codes: BTreeMap<String, (u64, u64)>,
    letters: u64,
    markers: u64,
    unreadable: u64,
    other_topic: u64,
}

impl Survey {
    pub fn read_topic(
        reader: &Reader,
        formats: &Formats,
        kafka: &Kafka,
        filter: &Filter,
        ranges: &Ranges,
    ) -> Result<Self> {
        let mut survey = Self::default();
        let mut admitted: BTreeMap<String, BTreeSet<LetterPosition>> = BTreeMap::new();
        let mut marked: BTreeSet<LetterPosition> = BTreeSet::new();
        let topic = &kafka.dead_letter_topic;
        reader.read_records(topic, ranges, |record| {
            let headers = read_headers(record);
            if Marker::is_marker(&headers) {
                survey.markers += 1;
                let letter = Marker::marked_letter(&headers);
                let letter = letter.filter(|position| *position.topic == **topic);
                marked.extend(letter.map(|position| (position.partition, position.offset)));
                return Ok(ControlFlow::Continue(()));
            }
            let payload = record.payload().unwrap_or_default();
            let Some(letter) = formats.parse_letter(payload)? else {
                survey.unreadable += 1;
                return Ok(ControlFlow::Continue(()));
            };
            survey.letters += 1;
            if letter.source_topic != kafka.input_topic {
                survey.other_topic += 1;
            } else if filter.admits(&letter) {
                let position = (record.partition(), record.offset());
                admitted.entry(letter.code).or_default().insert(position);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (code, positions) in admitted {
            let done = positions.intersection(&marked).count() as u64;
            survey.codes.insert(code, (positions.len() as u64, done));
            survey.pending.extend(positions.difference(&marked));
        }
        Ok(survey)
    }

    /// Whether a letter is to be put back.
    pub fn is_pending(&self, partition: i32, offset: i64) -> bool {
        self.pending.contains(&(partition, offset))
    }

    /// From the first to the last pending letter of each partition.
    pub fn pending_ranges(&self) -> Ranges {
        let mut ranges = Ranges::new();
        for &(partition, offset) in &self.pending {
            let range = ranges.entry(partition).or_insert(offset..offset);
            range.end = offset.saturating_add(1);
        }
        ranges
    }

    pub fn add_to(&self, summary: &mut Summary) {
        summary.letters = self.letters;
        summary.markers = self.markers;
        summary.unreadable = self.unreadable;
        summary.other_topic = self.other_topic;
        for (code, &(chosen, done)) in &self.codes {
            summary.chosen += chosen;
            summary.already_redriven += done;
            let counts = summary.codes.entry(code.clone()).or_default();
            (counts.chosen, counts.already_redriven) = (chosen, done);
        }
    }
}
