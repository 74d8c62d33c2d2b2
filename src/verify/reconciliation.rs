//! Matches references with their answers: pure accounting of positions, which keeps no record.
//!
//! Memory: one byte per offset, in chunks of 65,536 offsets, so that gaps cost nothing; and about 64
//! bytes more for a message of several images (and 8 for every 64 images beyond the first 64). Ten
//! million references of one image are 10 MB.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::report::{Example, Output, PartitionReport, Report, Unknown};

/// Offsets in a chunk.
const CHUNK: i64 = 1 << 16;
/// Most examples of each kind of problem.
const EXAMPLES: usize = 10;

/// The position of an output record, which answers a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRecord {
    pub output: Output,
    pub partition: i32,
    pub offset: i64,
}

/// The image that an answer says it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Image {
    pub partition: i32,
    pub offset: i64,
    pub index: usize,
}

/// Why the source of an answer is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownAnswer {
    /// No source headers, or malformed ones.
    NoSource,
    /// The source is another topic.
    OtherTopic,
}

/// The references at an offset, and whether they are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Slot {
    /// None: no record, or one without an image.
    #[default]
    Empty,
    /// One image, without an answer.
    Open,
    /// One image, answered.
    Answered,
    /// Several images: see `Partition::multi_image`.
    MultiImage,
}

/// A message of several images.
#[derive(Debug)]
struct MultiImage {
    images: usize,
    /// One bit per image.
    answered: Box<[u64]>,
}

#[derive(Debug)]
struct Partition {
    /// The offsets that are accounted for.
    range: Range<i64>,
    /// The end of the partition after everything was read: no reference is known at or beyond it.
    end: i64,
    chunks: BTreeMap<i64, Box<[Slot]>>,
    multi_image: HashMap<i64, MultiImage>,
    report: PartitionReport,
}

/// The references of one input topic, matched with the output records that answer them.
#[derive(Debug, Default)]
pub struct Reconciliation {
    partitions: BTreeMap<i32, Partition>,
    /// The furthest image of a source partition that was answered in an output partition.
    furthest: HashMap<(Output, i32, i32), (i64, usize)>,
    report: Report,
}

impl Reconciliation {
    /// Accounts for `range` of a partition whose log ends at `end`.
    pub fn add_partition(&mut self, partition: i32, range: Range<i64>, end: i64) {
        let report = PartitionReport::new(partition, &range);
        let (chunks, multi_image) = (BTreeMap::new(), HashMap::new());
        self.partitions.insert(partition, Partition { range, end, chunks, multi_image, report });
    }

    /// Adds a message of so many images; must come before any answer to it.
    pub fn add_message(&mut self, partition: i32, offset: i64, images: usize) {
        let Some(tracked) = self.partitions.get_mut(&partition) else {
            return;
        };
        if !tracked.range.contains(&offset) {
            return;
        }
        tracked.report.messages += 1;
        tracked.report.references += images as u64;
        let slot = match images {
            0 => return,
            1 => Slot::Open,
            _ => {
                let answered = vec![0; images.div_ceil(64)].into_boxed_slice();
                tracked.multi_image.insert(offset, MultiImage { images, answered });
                Slot::MultiImage
            }
        };
        if let Some(found) = tracked.slot_mut(offset) {
            *found = slot;
        }
    }

    /// Adds a record that answers `image`.
    pub fn add_answer(&mut self, record: OutputRecord, image: Image) {
        let Some(tracked) = self.partitions.get_mut(&image.partition) else {
            return self.never_asked(record);
        };
        if !tracked.range.contains(&image.offset) {
            if image.offset < tracked.end {
                self.report.out_of_range += 1;
                return;
            }
            return self.never_asked(record);
        }
        match tracked.mark_answered(image) {
            None => self.never_asked(record),
            Some(false) => {
                tracked.report.duplicated += 1;
                add_example(&mut self.report.examples.duplicated, record);
            }
            Some(true) => {
                match record.output {
                    Output::Captions => tracked.report.captions += 1,
                    Output::DeadLetters => tracked.report.dead_letters += 1,
                }
                let reference = (image.offset, image.index);
                let key = (record.output, record.partition, image.partition);
                let furthest = self.furthest.entry(key).or_insert((-1, 0));
                if reference < *furthest {
                    tracked.report.reordered += 1;
                    add_example(&mut self.report.examples.reordered, record);
                } else {
                    *furthest = reference;
                }
            }
        }
    }

    /// Adds a record whose reference is not known.
    pub fn add_unknown(&mut self, record: OutputRecord, why: UnknownAnswer) {
        match why {
            UnknownAnswer::NoSource => self.report.unknown.no_source += 1,
            UnknownAnswer::OtherTopic => self.report.unknown.other_topic += 1,
        }
        add_example(&mut self.report.examples.unknown, record);
    }

    /// Adds a record that marks a dead letter as redriven.
    pub fn add_marker(&mut self) {
        self.report.markers += 1;
    }

    fn never_asked(&mut self, record: OutputRecord) {
        let Unknown { never_asked, .. } = &mut self.report.unknown;
        *never_asked += 1;
        add_example(&mut self.report.examples.unknown, record);
    }

    /// Ends the reconciliation: references without an answer are missing.
    pub fn into_report(self) -> Report {
        let mut report = self.report;
        for tracked in self.partitions.into_values() {
            let mut partition = tracked.report.clone();
            let answered = partition.captions + partition.dead_letters;
            partition.missing = partition.references.saturating_sub(answered);
            let left = EXAMPLES.saturating_sub(report.examples.missing.len());
            if partition.missing > 0 {
                report.examples.missing.extend(tracked.missing_images().take(left));
            }
            report.add(partition);
        }
        report
    }
}

impl Partition {
    fn slot_mut(&mut self, offset: i64) -> Option<&mut Slot> {
        let chunk = self
            .chunks
            .entry(offset.div_euclid(CHUNK))
            .or_insert_with(|| vec![Slot::Empty; CHUNK as usize].into_boxed_slice());
        chunk.get_mut(usize::try_from(offset.rem_euclid(CHUNK)).ok()?)
    }

    /// Marks an image as answered. Returns whether this is its first answer, or None where there is
    /// no such reference.
    fn mark_answered(&mut self, image: Image) -> Option<bool> {
        let chunk = self.chunks.get_mut(&image.offset.div_euclid(CHUNK))?;
        let slot = chunk.get_mut(usize::try_from(image.offset.rem_euclid(CHUNK)).ok()?)?;
        match *slot {
            Slot::Open if image.index == 0 => {
                *slot = Slot::Answered;
                Some(true)
            }
            Slot::Answered if image.index == 0 => Some(false),
            Slot::MultiImage => {
                let many = self.multi_image.get_mut(&image.offset)?;
                if image.index >= many.images {
                    return None;
                }
                let word = many.answered.get_mut(image.index / 64)?;
                let bit = 1 << (image.index % 64);
                let is_new = *word & bit == 0;
                *word |= bit;
                Some(is_new)
            }
            _ => None,
        }
    }

    /// The images without an answer, in order.
    fn missing_images(&self) -> impl Iterator<Item = Example> {
        let number = self.report.partition;
        self.chunks.iter().flat_map(move |(chunk, slots)| {
            slots.iter().enumerate().flat_map(move |(index, slot)| {
                let offset = chunk * CHUNK + index as i64;
                self.open_images(offset, *slot).into_iter().map(move |index| Example::Image {
                    partition: number,
                    offset,
                    index,
                })
            })
        })
    }

    fn open_images(&self, offset: i64, slot: Slot) -> Vec<usize> {
        match slot {
            Slot::Open => vec![0],
            Slot::Empty | Slot::Answered => Vec::new(),
            Slot::MultiImage => self.multi_image.get(&offset).map_or_else(Vec::new, |many| {
                let is_open = |index: &usize| {
                    many.answered
                        .get(index / 64)
                        .is_some_and(|word| word & (1 << (index % 64)) == 0)
                };
                (0..many.images).filter(is_open).collect()
            }),
        }
    }
}

fn add_example(examples: &mut Vec<Example>, record: OutputRecord) {
    if examples.len() < EXAMPLES {
        examples.push(Example::Record {
            topic: record.output,
            partition: record.partition,
            offset: record.offset,
        });
    }
}
