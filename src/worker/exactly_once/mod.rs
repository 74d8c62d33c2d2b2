//! Decides when finished work may be committed, and which work is stale when a transaction ends:
//! the publisher's decisions as a pure state machine, apart from Kafka.
//!
//! The publisher reports events to it and follows its decisions. So does `simulation`, which puts
//! it through random schedules against a model of the brokers.
//!
//! 1. [`Protocol::track`] and [`Protocol::finish`] fill the ledger; what is stale falls away.
//! 2. [`Protocol::prepare`] takes the finished prefixes that are still owned, with the group
//!    metadata of the same moment. They are committed whole or not at all.
//! 3. [`Protocol::end`] is told how the transaction ended. Unless it was committed, all work in
//!    flight is stale from here on, and committed offsets are not to be trusted yet.
//! 4. The producer is replaced where [`TransactionOutcome::keeps_producer`] says no.
//! 5. [`Protocol::allow_rewind`]: the transaction is over for certain, so the consumer may rewind.

pub mod assignment;
pub mod in_flight;
pub mod ledger;
#[cfg(test)]
mod simulation;

use std::sync::Arc;

use crate::kafka::outcome::TransactionOutcome;
use crate::worker::exactly_once::assignment::Assignment;
use crate::worker::exactly_once::in_flight::InFlightGuard;
use crate::worker::exactly_once::ledger::{FinishedPrefix, Ledger, MessageId};

/// The ledger, and the rules around it.
#[derive(Debug)]
pub struct Protocol<O> {
    ledger: Ledger<O>,
}

/// The content of one transaction.
#[derive(Debug)]
pub struct Ready<O, G> {
    pub finished: Vec<FinishedPrefix<O>>,
    /// None when the consumer never was a member: then nothing can have been finished.
    pub group: Option<Arc<G>>,
}

impl<O> Default for Protocol<O> {
    fn default() -> Self {
        Self { ledger: Ledger::default() }
    }
}

impl<O> Protocol<O> {
    /// Notes a polled message of `records` records, unless it is stale or was tracked before. Drops
    /// the work of an older epoch.
    pub fn track<G>(
        &mut self,
        assignment: &Assignment<G>,
        message: MessageId,
        records: usize,
        guard: InFlightGuard,
    ) {
        if assignment.is_current(message.partition, message.epoch)
            && !self.ledger.track(message, records, guard)
        {
            tracing::warn!(?message, "a message was polled twice, and dropped");
        }
    }

    /// Notes the outcome of a record; `false`, and nothing noted, where it is stale.
    pub fn finish(&mut self, message: MessageId, index: usize, outcome: O) -> bool {
        self.ledger.finish(message, index, outcome)
    }

    /// Drops the work of `partitions`.
    pub fn forget(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            self.ledger.remove(partition);
        }
    }

    /// Takes every finished prefix whose partition is still owned under its epoch, and drops those
    /// of other partitions. None where nothing is left to commit.
    pub fn prepare<G>(&mut self, assignment: &Assignment<G>) -> Option<Ready<O, G>> {
        let mut finished = self.ledger.take_finished();
        let pairs = finished.iter().map(|prefix| (prefix.partition, prefix.epoch));
        let (owned, group) = assignment.snapshot(pairs);
        finished.retain(|prefix| owned.contains(&prefix.partition));
        (!finished.is_empty()).then_some(Ready { finished, group })
    }

    /// Takes note of a transaction's end. Unless it was committed, everything in flight is stale
    /// from now on, and nothing is polled under a new epoch before [`Protocol::allow_rewind`].
    pub fn end<G>(&mut self, assignment: &Assignment<G>, outcome: TransactionOutcome) {
        if !outcome.is_committed() {
            assignment.suspend_all();
            self.ledger.clear();
        }
    }

    /// The failed transaction is over for certain: it was aborted, or its producer has a
    /// successor. Committed offsets are the truth again, and the consumer may go back to them.
    pub fn allow_rewind<G>(&self, assignment: &Assignment<G>) {
        assignment.allow_rewind();
    }
}

/// Whether all of `finished` is still owned under its epoch: asked once more before a commit.
pub fn is_owned<O, G>(finished: &[FinishedPrefix<O>], assignment: &Assignment<G>) -> bool {
    finished.iter().all(|part| assignment.is_current(part.partition, part.epoch))
}
