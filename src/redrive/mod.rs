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

mod filter;
mod formats;
mod rebuild;
mod summary;
mod survey;
mod transaction;

use std::ops::ControlFlow;

use rdkafka::message::Message as _;

pub use filter::Filter;
pub use summary::{Counts, NotRedrivable, Summary};

use crate::config::{Kafka, Topics};
use crate::error::{Error, ErrorKind, Result};
use crate::message::SourcePosition;
use crate::reader::{End, Ranges, Reader};
use crate::redrive::formats::Formats;
use crate::redrive::rebuild::{Rebuilder, Rebuilt};
use crate::redrive::survey::Survey;
use crate::redrive::transaction::Redriver;

/// Most payload bytes in a transaction, whatever its number of letters.
const BATCH_BYTES: usize = 8 << 20;

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
                    .with_context("position", &position)
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
