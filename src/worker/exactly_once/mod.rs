//! When finished work may be committed, and what becomes of it when a transaction ends: the
//! publisher's decisions as a pure state machine, apart from Kafka.
//!
//! The publisher drives it with what happens, and does what it says. So does `simulation`, which
//! puts it through random schedules against a model of the brokers.
//!
//! 1. [`Protocol::track`] and [`Protocol::finish`] fill the ledger; what is stale falls away.
//! 2. [`Protocol::prepare`] takes the finished prefixes that are still owned, with the group
//!    metadata of the same moment. They are committed whole or not at all.
//! 3. [`Protocol::end`] is told how the transaction ended. Unless it was committed, all work in
//!    flight is stale from here on, and committed offsets are not to be trusted yet.
//! 4. The producer is replaced where [`Outcome::keeps_producer`] says no.
//! 5. [`Protocol::settle`]: the transaction is over for certain, so the consumer may rewind.

pub mod assignment;
pub mod ledger;
#[cfg(test)]
mod simulation;

use std::sync::Arc;

use crate::worker::exactly_once::assignment::Assignment;
use crate::worker::exactly_once::ledger::{Finished, Ledger, references};

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// Committed, while a connection broke: the end of transaction may have been sent twice, and
    /// the second one may still be on its way.
    CommittedLoosely,
    /// Aborted, for certain.
    Aborted,
    /// Nobody knows, or the producer is unusable.
    Unknown,
}

impl Outcome {
    /// Whether the producer may begin another transaction. librdkafka has no KIP-890: an end of
    /// transaction that is still on its way would end a *later* transaction of the same producer,
    /// but not one of its successor, whose epoch is higher.
    pub const fn keeps_producer(self) -> bool {
        matches!(self, Self::Committed | Self::Aborted)
    }

    /// Whether the work was committed.
    pub const fn is_committed(self) -> bool {
        matches!(self, Self::Committed | Self::CommittedLoosely)
    }
}

/// The ledger, and the rules around it.
#[derive(Debug)]
pub struct Protocol<O> {
    ledger: Ledger<O>,
}

/// What one transaction is to hold.
#[derive(Debug)]
pub struct Ready<O, G> {
    pub finished: Vec<Finished<O>>,
    /// None when the consumer never was a member: then nothing can have been finished.
    pub group: Option<Arc<G>>,
}

impl<O> Default for Protocol<O> {
    fn default() -> Self {
        Self { ledger: Ledger::default() }
    }
}

impl<O> Protocol<O> {
    /// Notes a polled message of `records` records. Returns the references that are dropped:
    /// those of an older epoch, and the message's own if it is stale or was tracked before.
    pub fn track<G>(
        &mut self,
        assignment: &Assignment<G>,
        (partition, epoch, offset): (i32, u64, i64),
        records: usize,
    ) -> usize {
        if !assignment.is_current(partition, epoch) {
            return references(records);
        }
        let mut dropped = 0;
        if self.ledger.epoch(partition).is_some_and(|known| known != epoch) {
            dropped += self.ledger.remove(partition);
        }
        if !self.ledger.track(partition, epoch, offset, records) {
            tracing::warn!(partition, offset, "a message was polled twice, and dropped");
            dropped += references(records);
        }
        dropped
    }

    /// Notes the outcome of a record; `false`, and nothing noted, where it is stale.
    pub fn finish(
        &mut self,
        (partition, epoch, offset): (i32, u64, i64),
        index: usize,
        outcome: O,
    ) -> bool {
        self.ledger.finish(partition, epoch, offset, index, outcome)
    }

    /// Drops the partitions' work; returns its references.
    pub fn forget(&mut self, partitions: &[i32]) -> usize {
        partitions.iter().map(|&partition| self.ledger.remove(partition)).sum()
    }

    /// Takes every finished prefix whose partition is still owned under its epoch; the second
    /// value is the references of those that are not.
    pub fn prepare<G>(&mut self, assignment: &Assignment<G>) -> (Option<Ready<O, G>>, usize) {
        let taken = self.ledger.take_finished();
        if taken.is_empty() {
            return (None, 0);
        }
        let pairs = taken.iter().map(|finished| (finished.partition, finished.epoch));
        let (owned, group) = assignment.snapshot(pairs);
        let (finished, stale): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|finished| owned.contains(&finished.partition));
        let dropped = stale.iter().map(|finished| finished.references).sum();
        let ready = (!finished.is_empty()).then_some(Ready { finished, group });
        (ready, dropped)
    }

    /// Takes note of a transaction's end. Unless it was committed, everything in flight is stale
    /// from now on, and nothing is polled under a new epoch before [`Protocol::settle`]. Returns
    /// the references that are dropped.
    pub fn end<G>(&mut self, assignment: &Assignment<G>, outcome: Outcome) -> usize {
        if outcome.is_committed() {
            return 0;
        }
        assignment.suspend_all();
        self.ledger.clear()
    }

    /// The failed transaction is over for certain: it was aborted, or its producer has a
    /// successor. Committed offsets are the truth again, and the consumer may go back to them.
    pub fn settle<G>(&self, assignment: &Assignment<G>) {
        assignment.allow_rewind();
    }
}

/// Whether all of `finished` is still owned under its epoch: asked once more before a commit.
pub fn is_owned<O, G>(finished: &[Finished<O>], assignment: &Assignment<G>) -> bool {
    finished.iter().all(|part| assignment.is_current(part.partition, part.epoch))
}
