//! The stages by name, and the counts of a run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The stages in the order of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Consume,
    Fetch,
    Decode,
    Batch,
    Encode,
    Caption,
    Publish,
}

/// The neighbour that a stage waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// There is no work: the stage before is slower.
    Upstream,
    /// There is no room: the stage behind is slower.
    Downstream,
}

impl WaitFor {
    /// Stable name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Downstream => "downstream",
        }
    }
}

impl Stage {
    pub const ALL: [Stage; 7] = [
        Self::Consume,
        Self::Fetch,
        Self::Decode,
        Self::Batch,
        Self::Encode,
        Self::Caption,
        Self::Publish,
    ];

    /// Stable name in metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Batch => "batch",
            Self::Encode => "encode",
            Self::Caption => "caption",
            Self::Publish => "publish",
        }
    }
}

/// Counts since the start of the run.
#[derive(Debug, Default)]
pub struct Tally {
    pub messages: AtomicU64,
    pub captions: AtomicU64,
    pub dead_letters: AtomicU64,
    pub skipped: AtomicU64,
    pub transactions: AtomicU64,
    /// Messages whose offsets are committed.
    pub answered: AtomicU64,
    busy_nanos: [AtomicU64; Stage::ALL.len()],
}

impl Tally {
    pub fn busy(&self, stage: Stage, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        if let Some(total) = self.busy_nanos.get(stage as usize) {
            total.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    /// Busy time of each stage, summed over its threads.
    pub fn stages(&self) -> Vec<(&'static str, Duration)> {
        let times = self.busy_nanos.iter();
        let nanos = times.map(|total| Duration::from_nanos(total.load(Ordering::Relaxed)));
        Stage::ALL.iter().map(|stage| stage.name()).zip(nanos).collect()
    }
}
