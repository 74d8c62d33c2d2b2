//! Dead letters back onto the input topic, exactly once.
//!
//! A run takes over the transactional id `<group>-redrive`: that ends every transaction that an
//! earlier run left open, and fences a run that is still at work. Only then does it read the whole
//! dead-letter topic, letters and markers (`survey`). It rebuilds the references of the letters that
//! the filter admits and no marker names (`rebuild`), and puts them back in transactions that hold
//! the references and the markers of the same letters (`transaction`). So whenever a run dies, each
//! letter is either marked and put back or neither, and the next run knows which.
//!
//! A commit during which a connection broke may still act on a later transaction of the same
//! producer (see `kafka/transaction`). After such a commit the producer is replaced, and everything
//! is surveyed again, because another run may have come in between.

mod formats;
mod rebuild;
mod summary;
mod survey;
mod transaction;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use jiff::Timestamp;
use rdkafka::message::Message as _;

pub use summary::{Counts, NotRedrivable, Summary};

use crate::config::{Kafka, Topics};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{DeadLetter, SourcePosition};
use crate::reader::{End, Ranges, Reader};
use crate::redrive::formats::Formats;
use crate::redrive::rebuild::{Rebuilder, Rebuilt};
use crate::redrive::survey::Survey;
use crate::redrive::transaction::Redriver;

/// Most payload bytes in a transaction, whatever its number of letters.
const BATCH_BYTES: usize = 8 << 20;

/// Selects the dead letters to put back. An empty criterion admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub codes: BTreeSet<String>,
    pub ids: BTreeSet<String>,
    /// Letters that failed at this time or later.
    pub since: Option<Timestamp>,
    /// Letters that failed before this time.
    pub until: Option<Timestamp>,
}

impl Filter {
    pub fn admits(&self, letter: &DeadLetter) -> bool {
        let is_in = |set: &BTreeSet<String>, value| set.is_empty() || set.contains(value);
        if !is_in(&self.codes, &letter.code) || !is_in(&self.ids, &letter.id) {
            return false;
        }
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(failed) = letter.failed_at.parse::<Timestamp>() else {
            return false;
        };
        self.since.is_none_or(|since| failed >= since)
            && self.until.is_none_or(|until| failed < until)
    }
}

/// The task of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub filter: Filter,
    /// Most letters in a transaction.
    pub batch: usize,
    /// Counts only, and writes nothing.
    pub dry_run: bool,
}

/// Puts the references of the selected letters back.
///
/// # Errors
/// `ErrorKind::Config` for settings that are refused; `ErrorKind::Kafka` when a topic can't be
/// read, a transaction fails, or another run has taken over; `ErrorKind::Registry` when the schema
/// registry does not answer. Earlier transactions remain committed, and the next run finds their
/// markers.
pub fn run(topics: &Topics, plan: &Plan) -> Result<Summary> {
    let kafka = &topics.kafka;
    let formats = Formats::connect(topics, plan.dry_run)?;
    let reader = Reader::new(kafka)?;
    let letters = reader.partitions("kafka.dead_letter_topic", &kafka.dead_letter_topic)?;
    let inputs = reader.partitions("kafka.input_topic", &kafka.input_topic)?;
    let mut summary = Summary { dry_run: plan.dry_run, ..Summary::default() };
    let mut is_first = true;
    // Before anything is read: see the module's documentation.
    let mut redriver = if plan.dry_run { None } else { Some(Redriver::connect(kafka)?) };
    loop {
        let topic = &kafka.dead_letter_topic;
        // Up to the latest end, so that no letter behind an open transaction is missed.
        let ranges = reader.ranges(topic, &letters, End::Latest)?;
        reader.await_stable(topic, &ranges)?;
        let survey = Survey::read_topic(&reader, &formats, kafka, &plan.filter, &ranges)?;
        if is_first {
            survey.add_to(&mut summary);
            is_first = false;
        }
        let Some(redriver) = &mut redriver else {
            return Ok(summary);
        };
        summary.not_redrivable = NotRedrivable::default();
        let rebuilder = Rebuilder::new(kafka, &formats, &inputs)?;
        let batch = Vec::new();
        let reader = &reader;
        let pass = Pass { reader, formats: &formats, kafka, plan, redriver, rebuilder, batch };
        if pass.run(&survey.pending_ranges(), &survey, &mut summary)?.is_continue() {
            return Ok(summary);
        }
        tracing::info!("a connection broke during a commit: surveying again");
        redriver.reconnect()?;
    }
}

/// One reading of the letters, with one producer.
struct Pass<'r> {
    reader: &'r Reader,
    formats: &'r Formats,
    kafka: &'r Kafka,
    plan: &'r Plan,
    redriver: &'r mut Redriver,
    rebuilder: Rebuilder<'r>,
    batch: Vec<Rebuilt>,
}

impl Pass<'_> {
    /// Breaks where the producer has to be replaced.
    fn run(
        mut self,
        ranges: &Ranges,
        survey: &Survey,
        summary: &mut Summary,
    ) -> Result<ControlFlow<()>> {
        let (reader, topic) = (self.reader, &self.kafka.dead_letter_topic);
        let (mut bytes, mut ended) = (0_usize, ControlFlow::Continue(()));
        reader.read_records(topic, ranges, |record| {
            if !survey.is_pending(record.partition(), record.offset()) {
                return Ok(ControlFlow::Continue(()));
            }
            let position = SourcePosition {
                topic: topic.as_str().into(),
                partition: record.partition(),
                offset: record.offset(),
            };
            let payload = record.payload().unwrap_or_default();
            let letter = self.formats.parse_letter(payload)?.ok_or_else(|| {
                Error::new(ErrorKind::Internal, "a dead letter changed while it was read")
                    .with("position", &position)
            })?;
            match self.rebuilder.rebuild(&letter, position)? {
                Ok(rebuilt) => {
                    bytes = bytes.saturating_add(rebuilt.bytes());
                    self.batch.push(rebuilt);
                }
                Err(reason) => summary.not_redrivable.add(reason),
            }
            if self.batch.len() >= self.plan.batch || bytes >= BATCH_BYTES {
                bytes = 0;
                ended = self.commit(summary)?;
            }
            Ok(ended)
        })?;
        if ended.is_continue() && !self.batch.is_empty() {
            // Nothing comes after the last batch.
            let _ = self.commit(summary)?;
        }
        Ok(ended)
    }

    fn commit(&mut self, summary: &mut Summary) -> Result<ControlFlow<()>> {
        let outcome = self.redriver.commit(&self.batch, &self.kafka.input_topic)?;
        for rebuilt in self.batch.drain(..) {
            summary.add_redriven(&rebuilt.code);
        }
        Ok(if outcome.keeps_producer() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{RawRecord, SourcePosition, Stage};

    fn letter(code: ErrorKind, failed_at: &str) -> DeadLetter {
        let source = SourcePosition { topic: "images.in".into(), partition: 0, offset: 7 };
        let error = Error::new(code, "it went wrong");
        let original = RawRecord::default();
        let mut letter = DeadLetter::new(&source, 0, None, &error, (Stage::Fetch, 1), &original);
        letter.failed_at = failed_at.into();
        letter
    }

    #[test]
    fn every_kind_of_choice_must_hold() {
        let missing = letter(ErrorKind::ObjectNotFound, "2026-11-23T12:00:00.000001Z");
        let filter = |codes: &[ErrorKind], ids: &[&str], since: &str, until: &str| Filter {
            codes: codes.iter().map(|kind| kind.code().to_owned()).collect(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            since: since.parse().ok(),
            until: until.parse().ok(),
        };
        let (found, denied) = (ErrorKind::ObjectNotFound, ErrorKind::AccessDenied);
        let id = missing.id.as_str();
        for (filter, admitted) in [
            (Filter::default(), true),
            (filter(&[found, denied], &[], "", ""), true),
            (filter(&[denied], &[], "", ""), false),
            (filter(&[], &[id, "other"], "", ""), true),
            (filter(&[found], &["other"], "", ""), false),
            (filter(&[], &[], "2026-11-23T12:00:00.000001Z", ""), true),
            (filter(&[], &[], "2026-11-23T12:00:00.000002Z", ""), false),
            (filter(&[], &[], "", "2026-11-23T12:00:00.000001Z"), false),
            (filter(&[], &[], "", "2026-11-23T13:00:00.000002+01:00"), true),
        ] {
            assert_eq!(filter.admits(&missing), admitted, "{filter:?}");
        }
        let undated = letter(found, "yesterday");
        assert!(!filter(&[], &[], "2020-01-01T00:00:00Z", "").admits(&undated));
    }
}
