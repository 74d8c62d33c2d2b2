//! The publisher's inbox.

use crate::worker::outcome::Outcome;

/// What the publisher is told.
///
/// The channel that carries it has no bound of its own: what is tracked in it and not yet
/// committed is bounded by `limits.max_in_flight`, above which the consumer takes nothing in.
#[derive(Debug)]
pub enum Event {
    /// A message was polled; sent before any of its outcomes.
    Tracked {
        partition: i32,
        epoch: u64,
        offset: i64,
        records: usize,
    },
    Finished(Vec<Outcome>),
    /// The partitions are about to go: commit what is finished, forget the rest, then answer.
    Revoked {
        partitions: Vec<i32>,
        done: std::sync::mpsc::SyncSender<()>,
    },
    /// The partitions are gone, or go back: what was tracked of them is stale.
    Lost {
        partitions: Vec<i32>,
    },
    /// Commit what is finished and end.
    Close,
}
