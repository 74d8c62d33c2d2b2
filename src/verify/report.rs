//! The result of a reconciliation: counts by input partition, and the first examples of each problem.
//!
//! For every partition `references = captions + dead_letters + missing`; all other answers are
//! `duplicated`, `unknown` or `out_of_range`.

use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::{Serialize, Serializer};

/// The counts of one input partition.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct PartitionReport {
    pub partition: i32,
    /// The first offset that is accounted for.
    pub from: i64,
    /// The offset before which the reconciliation ends.
    pub to: i64,
    pub messages: u64,
    /// Images in the messages. A message that can't be read counts as one.
    pub references: u64,
    /// References whose first answer is a caption.
    pub captions: u64,
    /// References whose first answer is a dead letter.
    pub dead_letters: u64,
    /// References without an answer.
    pub missing: u64,
    /// Answers beyond the first one.
    pub duplicated: u64,
    /// First answers that stand, in their output partition, after an answer to a later reference
    /// of the same input partition.
    pub reordered: u64,
}

impl PartitionReport {
    pub fn new(partition: i32, range: &Range<i64>) -> Self {
        Self { partition, from: range.start, to: range.end, ..Self::default() }
    }
}

/// The counts of all partitions together.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Total {
    pub messages: u64,
    pub references: u64,
    pub captions: u64,
    pub dead_letters: u64,
    pub missing: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

/// Records that answer no reference.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Unknown {
    /// Without source headers, or with malformed ones.
    pub no_source: u64,
    /// From another topic.
    pub other_topic: u64,
    /// From an offset or an index without a reference.
    pub never_asked: u64,
}

impl Unknown {
    pub fn total(&self) -> u64 {
        self.no_source + self.other_topic + self.never_asked
    }
}

/// A position to look at.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Example {
    /// A reference on the input topic.
    Image {
        partition: i32,
        offset: i64,
        index: usize,
    },
    Record {
        topic: Output,
        partition: i32,
        offset: i64,
    },
}

/// The first positions of each problem.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Examples {
    pub missing: Vec<Example>,
    pub duplicated: Vec<Example>,
    pub reordered: Vec<Example>,
    pub unknown: Vec<Example>,
}

/// The whole reconciliation.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Report {
    pub partitions: Vec<PartitionReport>,
    pub total: Total,
    pub unknown: Unknown,
    /// Answers to references before or after the offsets that are accounted for.
    pub out_of_range: u64,
    /// Markers of redriven dead letters.
    pub markers: u64,
    pub examples: Examples,
}

impl Report {
    /// Whether every reference has one answer.
    pub fn is_exactly_once(&self) -> bool {
        self.total.missing == 0 && self.total.duplicated == 0
    }

    pub(super) fn add(&mut self, partition: PartitionReport) {
        let total = &mut self.total;
        total.messages += partition.messages;
        total.references += partition.references;
        total.captions += partition.captions;
        total.dead_letters += partition.dead_letters;
        total.missing += partition.missing;
        total.duplicated += partition.duplicated;
        total.reordered += partition.reordered;
        self.partitions.push(partition);
    }
}

const COLUMNS: [&str; 9] = [
    "partition",
    "from",
    "to",
    "references",
    "captions",
    "dead letters",
    "missing",
    "duplicated",
    "reordered",
];

/// A table with a row per partition, and a line for each kind of problem.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        rows.extend(self.partitions.iter().map(|row| {
            [
                row.partition.to_string(),
                row.from.to_string(),
                row.to.to_string(),
                row.references.to_string(),
                row.captions.to_string(),
                row.dead_letters.to_string(),
                row.missing.to_string(),
                row.duplicated.to_string(),
                row.reordered.to_string(),
            ]
        }));
        let total = &self.total;
        rows.push([
            "total".to_owned(),
            String::new(),
            String::new(),
            total.references.to_string(),
            total.captions.to_string(),
            total.dead_letters.to_string(),
            total.missing.to_string(),
            total.duplicated.to_string(),
            total.reordered.to_string(),
        ]);
        for row in &rows {
            let mut line = String::new();
            for (cell, name) in row.iter().zip(COLUMNS) {
                write!(line, "{cell:>width$}  ", width = name.len().max(10))?;
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        let Unknown { no_source, other_topic, never_asked } = self.unknown;
        writeln!(
            formatter,
            "unknown: {} ({no_source} without a source, {other_topic} of another topic, \
             {never_asked} never asked)",
            self.unknown.total()
        )?;
        writeln!(formatter, "out of range: {}", self.out_of_range)?;
        writeln!(formatter, "markers of redriven dead letters: {}", self.markers)?;
        let lists = [
            ("missing", &self.examples.missing),
            ("duplicated", &self.examples.duplicated),
            ("reordered", &self.examples.reordered),
            ("unknown", &self.examples.unknown),
        ];
        for (name, examples) in lists.into_iter().filter(|(_, examples)| !examples.is_empty()) {
            let positions: Vec<String> = examples.iter().map(Example::to_string).collect();
            writeln!(formatter, "{name}, the first: {}", positions.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Example {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { partition, offset, index } => {
                write!(formatter, "{partition}/{offset}/{index}")
            }
            Self::Record { topic, partition, offset } => {
                write!(formatter, "{} {partition}/{offset}", topic.name())
            }
        }
    }
}

/// The topic of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Output {
    Captions,
    DeadLetters,
}

impl Output {
    pub fn name(self) -> &'static str {
        match self {
            Self::Captions => "captions",
            Self::DeadLetters => "dead_letters",
        }
    }
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
