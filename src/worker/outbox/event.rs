//! The publisher's inbox.
//!
//! The channel has no bound of its own: what is tracked in it and not yet committed is bounded by
//! `limits.max_in_flight`, above which the consumer polls nothing.

use crate::worker::exactly_once::in_flight::InFlightGuard;
use crate::worker::exactly_once::ledger::MessageId;
use crate::worker::outcome::Outcome;

#[derive(Debug)]
pub enum PublisherEvent {
    /// A message was polled; sent before any of its outcomes.
    Tracked {
        message: MessageId,
        records: usize,
        guard: InFlightGuard,
    },
    Finished(Vec<Outcome>),
    /// The partitions are about to go: commit the finished work, forget the rest, signal `done`.
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
