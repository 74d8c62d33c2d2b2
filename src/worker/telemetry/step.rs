//! The stages of the flow by name, and what the run has counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The steps of the flow, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Consume,
    Fetch,
    Decode,
    Batch,
    Encode,
    Caption,
    Publish,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Work: the step before is slower.
    Input,
    /// Room: the step behind is slower.
    Output,
}

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

impl Step {
    pub const ALL: [Step; 7] = [
        Self::Consume,
        Self::Fetch,
        Self::Decode,
        Self::Batch,
        Self::Encode,
        Self::Caption,
        Self::Publish,
    ];

    /// Stable name: it stands in metrics and reports.
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

/// What the run has done so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub messages: AtomicU64,
    pub captions: AtomicU64,
    pub dead_letters: AtomicU64,
    pub skipped: AtomicU64,
    pub transactions: AtomicU64,
    /// Messages whose offsets are committed.
    pub answered: AtomicU64,
    pub busy_nanos: [AtomicU64; Step::ALL.len()],
}

impl Tally {
    pub fn stages(&self) -> Vec<(&'static str, Duration)> {
        let times = self.busy_nanos.iter();
        let nanos = times.map(|total| Duration::from_nanos(total.load(Ordering::Relaxed)));
        Step::ALL.iter().map(|step| step.name()).zip(nanos).collect()
    }
}
