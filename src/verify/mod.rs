//! Does every reference have exactly one answer? Read from the topics themselves.
//!
//! ```text
//! images.in ─ references ─┐
//! captions.out ───────────┼─ reconciliation ─ report
//! images.dlq ─────────────┘
//! ```
//! **The order in which the ends are taken** matters while workers run. The end of the input comes
//! first: the group's committed offsets, the last stable offsets, or the offsets given. The ends of
//! both output topics are taken after it, at the high watermark, and reading waits until every
//! transaction below them has ended. A committed offset is in one transaction with its answers, so
//! the answers lie below ends that are taken later, even while some partition still waits for the
//! transaction's markers: with `Until::Committed` no answered reference looks missing. The other
//! order would miss answers that came in between. Answers to references beyond the input's end are
//! out of range, not unknown; to tell, the input's end is taken once more, last. With `Until::End`
//! references that the workers have not reached yet are missing: use it once they have caught up.
//!
//! References are read before answers, whose source headers are looked up in the reconciliation, which
//! takes a byte per offset and keeps no record.

mod reconciliation;
mod report;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

pub use report::{Example, Examples, PartitionReport, Report, Total, Unknown};

use crate::config::Topics;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::headers::read_headers;
use crate::message::{self, Marker, SourcePosition, header};
use crate::reader::{End, Offsets, Ranges, Reader};
use crate::registry::{BlockingDecoder, Kind, Registry};
use crate::verify::reconciliation::{Image, OutputRecord, Reconciliation, UnknownAnswer};
use crate::verify::report::Output;

/// Where the reconciliation ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// At the end of each partition.
    #[default]
    End,
    /// At the offsets that the group has committed.
    Committed,
    /// Before these offsets; other partitions at their end.
    Offsets(Offsets),
}

/// Which references are accounted for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The first offsets; other partitions from their log start.
    pub from: Offsets,
    pub until: Until,
}

/// Reads the three topics and accounts for every reference in `scope`.
///
/// # Errors
/// `ErrorKind::Config` for offsets or partitions that are not there; `ErrorKind::Kafka` when a
/// topic can't be read, or the group has committed nothing; `ErrorKind::Registry` when the schema
/// registry does not answer.
pub fn run(topics: &Topics, scope: &Scope) -> Result<Report> {
    let kafka = &topics.kafka;
    let requests = Registry::new(&topics.registry)?.blocking_decoder(Kind::Request)?;
    let reader = Reader::new(kafka)?;
    let input = &kafka.input_topic;
    let partitions = reader.partitions("kafka.input_topic", input)?;
    let outputs = [
        (Output::Captions, "kafka.output_topic", &kafka.output_topic),
        (Output::DeadLetters, "kafka.dead_letter_topic", &kafka.dead_letter_topic),
    ];
    let known = reader.ranges(input, &partitions, End::Stable)?;
    let references = match &scope.until {
        Until::Committed => {
            let committed = reader.committed(input, &partitions)?;
            if committed.is_empty() {
                // Otherwise a misspelt group would pass with nothing verified.
                return Err(Error::new(ErrorKind::Kafka, "the group has committed no offset")
                    .with_context("kafka.group", &kafka.group)
                    .with_context("kafka.input_topic", input));
            }
            narrowed(known, &scope.from, &committed, Some(0))?
        }
        Until::Offsets(to) => narrowed(known, &scope.from, to, None)?,
        Until::End => narrowed(known, &scope.from, &Offsets::new(), None)?,
    };
    // Only now: see the module's documentation.
    let mut answers = Vec::new();
    for (output, field, topic) in outputs {
        let partitions = reader.partitions(field, topic)?;
        answers.push((output, topic, reader.ranges(topic, &partitions, End::Latest)?));
    }
    let ends = reader.ranges(input, &partitions, End::Latest)?;
    for (_, topic, ranges) in &answers {
        reader.await_stable(topic, ranges)?;
    }

    let mut reconciliation = Reconciliation::default();
    for (&partition, range) in &references {
        let end = ends.get(&partition).map_or(range.end, |known| known.end);
        reconciliation.add_partition(partition, range.clone(), end);
    }
    read_references(&reader, &requests, input, &references, &mut reconciliation)?;
    for (output, topic, ranges) in &answers {
        read_answers(&reader, *output, topic, input, ranges, &mut reconciliation)?;
    }
    Ok(reconciliation.into_report())
}

/// `known` between `from` and `to`. A partition without an offset in `to` ends at its end, or at its
/// start plus `otherwise`.
fn narrowed(
    mut known: Ranges,
    from: &Offsets,
    to: &Offsets,
    otherwise: Option<i64>,
) -> Result<Ranges> {
    for (flag, offsets) in [("--from", from), ("--to", to)] {
        let is_given = flag == "--from" || otherwise.is_none();
        for (&partition, &offset) in offsets.iter().filter(|_| is_given) {
            let wrong = |allowed: String| {
                Error::new(ErrorKind::Config, format!("{flag} can't be {partition}={offset}"))
                    .with_context("allowed", allowed)
            };
            let Some(range) = known.get(&partition) else {
                let numbers: Vec<String> = known.keys().map(i32::to_string).collect();
                return Err(wrong(format!("the partitions {}", numbers.join(", "))));
            };
            if !(range.start..=range.end).contains(&offset) {
                return Err(wrong(format!("offsets from {} to {}", range.start, range.end)));
            }
        }
    }
    for (partition, range) in &mut known {
        let start = from.get(partition).copied().unwrap_or(range.start);
        let end = match (to.get(partition), otherwise) {
            (Some(&offset), _) => offset,
            (None, Some(length)) => start.saturating_add(length),
            (None, None) => range.end,
        };
        *range = start..end.max(start);
    }
    Ok(known)
}

fn read_references(
    reader: &Reader,
    requests: &BlockingDecoder,
    topic: &str,
    ranges: &Ranges,
    reconciliation: &mut Reconciliation,
) -> Result<()> {
    use rdkafka::message::Message as _;
    reader.read_records(topic, ranges, |record| {
        let (partition, offset) = (record.partition(), record.offset());
        let source = SourcePosition { topic: topic.into(), partition, offset };
        let payload = record.payload().unwrap_or_default();
        let parsed = requests
            .open(payload)
            .and_then(|opened| message::parse(&opened, &read_headers(record), &source));
        let images = match parsed {
            Ok(requests) => requests.images.len(),
            Err(error) if error.kind() == ErrorKind::Registry => return Err(error),
            // A message that can't be read gets one dead letter.
            Err(_) => 1,
        };
        reconciliation.add_message(partition, offset, images);
        Ok(ControlFlow::Continue(()))
    })
}

fn read_answers(
    reader: &Reader,
    output: Output,
    topic: &str,
    input: &str,
    ranges: &Ranges,
    reconciliation: &mut Reconciliation,
) -> Result<()> {
    use rdkafka::message::Message as _;
    reader.read_records(topic, ranges, |record| {
        let answer =
            OutputRecord { output, partition: record.partition(), offset: record.offset() };
        let headers = read_headers(record);
        match header::parse_source(&headers) {
            _ if output == Output::DeadLetters && Marker::is_marker(&headers) => {
                reconciliation.add_marker()
            }
            None => reconciliation.add_unknown(answer, UnknownAnswer::NoSource),
            Some((source, _)) if &*source.topic != input => {
                reconciliation.add_unknown(answer, UnknownAnswer::OtherTopic);
            }
            Some((SourcePosition { partition, offset, .. }, index)) => {
                reconciliation.add_answer(answer, Image { partition, offset, index });
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}
