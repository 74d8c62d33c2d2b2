//! Which source offsets are finished: a pure state machine, one partition at a time.
//!
//! A message is tracked when it is polled, in offset order, with the number of records it holds.
//! It is finished when each of them has an outcome (at once, if it holds none). Only the
//! *contiguous finished prefix* of a partition may be committed: outcomes beyond it are held back
//! until the prefix reaches them, so that a transaction holds exactly the outcomes of the offsets
//! it commits.
//!
//! Every call names the partition's assignment epoch. Work of another epoch is refused: it was
//! polled before a rebalance or a rewind, and will be read again.

use std::collections::{BTreeMap, VecDeque};

use crate::worker::exactly_once::in_flight::InFlightGuard;

/// A message, and the assignment epoch under which it was polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    pub partition: i32,
    pub epoch: u64,
    pub offset: i64,
}

/// The messages of the partitions that are being worked on; `O` is the outcome of one record.
#[derive(Debug)]
pub struct Ledger<O> {
    partitions: BTreeMap<i32, Partition<O>>,
}

#[derive(Debug)]
struct Partition<O> {
    epoch: u64,
    /// No offset below this one is accepted.
    next: i64,
    /// In offset order; offsets may skip (transaction markers, compaction).
    entries: VecDeque<Entry<O>>,
}

#[derive(Debug)]
struct Entry<O> {
    offset: i64,
    outcomes: Vec<Option<O>>,
    unfinished: usize,
    guard: InFlightGuard,
}

/// The finished prefix of one partition, ready to commit.
#[derive(Debug)]
pub struct FinishedPrefix<O> {
    pub partition: i32,
    pub epoch: u64,
    /// The offset to commit: the last finished one + 1.
    pub next_offset: i64,
    /// In the order of offset and record.
    pub outcomes: Vec<O>,
    /// One for each message: they count as in flight until this is dropped.
    pub guards: Vec<InFlightGuard>,
}

impl<O> FinishedPrefix<O> {
    pub fn messages(&self) -> usize {
        self.guards.len()
    }
}

impl<O> Default for Ledger<O> {
    fn default() -> Self {
        Self { partitions: BTreeMap::new() }
    }
}

impl<O> Ledger<O> {
    /// Notes a polled message of `records` records. Returns `false`, and notes nothing, when its
    /// offset was already seen in this epoch or its epoch is an older one. A newer epoch replaces
    /// the work of the one before.
    #[must_use]
    pub fn track(&mut self, message: MessageId, records: usize, guard: InFlightGuard) -> bool {
        let MessageId { partition, epoch, offset } = message;
        let fresh = || Partition { epoch, next: offset, entries: VecDeque::new() };
        let state = self.partitions.entry(partition).or_insert_with(fresh);
        if epoch > state.epoch {
            *state = fresh();
        }
        if epoch < state.epoch || offset < state.next {
            return false;
        }
        state.next = offset.saturating_add(1);
        let outcomes = std::iter::repeat_with(|| None).take(records).collect();
        state.entries.push_back(Entry { offset, outcomes, unfinished: records, guard });
        true
    }

    /// Notes the outcome of record `index` of a message. Returns `false`, and drops it, when the
    /// epoch is over, the message unknown or the record already finished.
    pub fn finish(&mut self, message: MessageId, index: usize, outcome: O) -> bool {
        let Some(entry) = self.entry(message) else {
            return false;
        };
        let Some(slot @ None) = entry.outcomes.get_mut(index) else {
            return false;
        };
        *slot = Some(outcome);
        entry.unfinished -= 1;
        true
    }

    fn entry(&mut self, message: MessageId) -> Option<&mut Entry<O>> {
        let state = self.partitions.get_mut(&message.partition)?;
        if state.epoch != message.epoch {
            return None;
        }
        let found = state.entries.binary_search_by_key(&message.offset, |entry| entry.offset);
        state.entries.get_mut(found.ok()?)
    }

    /// Takes the finished prefix of every partition that has one.
    pub fn take_finished(&mut self) -> Vec<FinishedPrefix<O>> {
        let mut taken = Vec::new();
        for (&partition, state) in &mut self.partitions {
            let prefix = state.entries.iter().take_while(|entry| entry.unfinished == 0).count();
            if prefix == 0 {
                continue;
            }
            let mut finished = FinishedPrefix {
                partition,
                epoch: state.epoch,
                next_offset: 0,
                outcomes: Vec::new(),
                guards: Vec::with_capacity(prefix),
            };
            for entry in state.entries.drain(..prefix) {
                finished.next_offset = entry.offset.saturating_add(1);
                finished.outcomes.extend(entry.outcomes.into_iter().flatten());
                finished.guards.push(entry.guard);
            }
            taken.push(finished);
        }
        taken
    }

    /// Forgets the work of a partition.
    pub fn remove(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.partitions.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::worker::exactly_once::in_flight::InFlight;

    fn id(partition: i32, epoch: u64, offset: i64) -> MessageId {
        MessageId { partition, epoch, offset }
    }

    fn taken(ledger: &mut Ledger<u32>) -> Option<(i64, Vec<u32>)> {
        let mut all = ledger.take_finished();
        assert!(all.len() <= 1);
        all.pop().map(|finished| (finished.next_offset, finished.outcomes))
    }

    #[test]
    fn outcomes_wait_for_the_prefix() {
        let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
        for offset in 10..13 {
            assert!(ledger.track(id(0, 1, offset), 1, in_flight.enter(1)));
        }
        assert!(ledger.finish(id(0, 1, 12), 0, 12));
        assert!(ledger.finish(id(0, 1, 11), 0, 11));
        assert_eq!(taken(&mut ledger), None);
        assert!(ledger.finish(id(0, 1, 10), 0, 10));
        assert_eq!(taken(&mut ledger), Some((13, vec![10, 11, 12])));
        assert_eq!(taken(&mut ledger), None);
    }

    #[test]
    fn a_message_is_finished_with_its_last_record() {
        let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
        assert!(ledger.track(id(0, 1, 5), 3, in_flight.enter(3)));
        assert!(ledger.finish(id(0, 1, 5), 2, 2));
        assert!(ledger.finish(id(0, 1, 5), 0, 0));
        assert_eq!(taken(&mut ledger), None);
        assert!(ledger.finish(id(0, 1, 5), 1, 1));
        assert_eq!(taken(&mut ledger), Some((6, vec![0, 1, 2])));
    }

    #[test]
    fn a_message_without_records_is_finished_at_once() {
        let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
        assert!(ledger.track(id(0, 1, 5), 0, in_flight.enter(0)));
        assert_eq!(in_flight.references(), 1);
        assert_eq!(taken(&mut ledger), Some((6, vec![])));
        assert_eq!(in_flight.references(), 0);
    }

    #[test]
    fn an_offset_is_tracked_once() {
        let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
        assert!(ledger.track(id(0, 1, 5), 1, in_flight.enter(1)));
        assert!(!ledger.track(id(0, 1, 5), 1, in_flight.enter(1)));
        assert!(ledger.finish(id(0, 1, 5), 0, 1));
        assert!(!ledger.finish(id(0, 1, 5), 0, 2));
        assert_eq!(taken(&mut ledger), Some((6, vec![1])));
        assert!(!ledger.track(id(0, 1, 5), 1, in_flight.enter(1)), "also when it has been taken");
        assert!(ledger.track(id(0, 1, 9), 1, in_flight.enter(1)), "offsets may skip");
    }

    #[test]
    fn other_epochs_are_refused() {
        let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
        assert!(ledger.track(id(0, 2, 5), 1, in_flight.enter(1)));
        assert!(!ledger.track(id(0, 1, 6), 1, in_flight.enter(1)));
        assert!(!ledger.finish(id(0, 1, 5), 0, 1));
        assert!(
            ledger.track(id(0, 3, 4), 1, in_flight.enter(1)),
            "a newer epoch begins anew, here after a rewind"
        );
        assert!(!ledger.finish(id(0, 2, 5), 0, 1));
        assert!(ledger.finish(id(0, 3, 4), 0, 4));
        assert_eq!(taken(&mut ledger), Some((5, vec![4])));
    }

    #[test]
    fn unknown_work_is_refused() {
        let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
        assert!(!ledger.finish(id(0, 1, 5), 0, 1));
        assert!(ledger.track(id(0, 1, 5), 1, in_flight.enter(1)));
        assert!(!ledger.finish(id(0, 1, 5), 1, 1));
        assert!(!ledger.finish(id(0, 1, 4), 0, 1));
        assert!(!ledger.finish(id(1, 1, 5), 0, 1));
        ledger.remove(0);
        assert_eq!(in_flight.references(), 0, "what is forgotten is not in flight");
        assert!(!ledger.finish(id(0, 1, 5), 0, 1));
    }

    /// Messages of up to three records on three partitions, with gaps between the offsets, and
    /// the order in which the records finish.
    fn schedules() -> impl Strategy<Value = (Vec<(i32, i64, usize)>, Vec<usize>)> {
        proptest::collection::vec((0..3_i32, 1..4_i64, 0..4_usize), 1..60).prop_flat_map(|steps| {
            let mut next = [0_i64; 3];
            let messages: Vec<_> = steps
                .into_iter()
                .map(|(partition, gap, records)| {
                    let place = usize::try_from(partition).unwrap();
                    next[place] += gap;
                    (partition, next[place], records)
                })
                .collect();
            let records = messages.iter().map(|message| message.2).sum::<usize>();
            (Just(messages), Just((0..records).collect::<Vec<_>>()).prop_shuffle())
        })
    }

    proptest! {
        /// In any order, every record is taken once, under the commit that covers its
        /// offset; offsets only grow; nothing is committed past an unfinished record.
        #[test]
        fn commits_cover_exactly_what_they_carry((messages, order) in schedules(), every in 1..7_usize) {
            let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
            let mut records = Vec::new();
            for &(partition, offset, count) in &messages {
                prop_assert!(ledger.track(id(partition, 7, offset), count, in_flight.enter(count)));
                records.extend((0..count).map(|index| (partition, offset, index)));
            }
            let mut done = BTreeSet::new();
            let mut seen = BTreeSet::new();
            let mut committed = [-1_i64; 3];
            for (step, &pick) in order.iter().enumerate() {
                let (partition, offset, index) = records[pick];
                prop_assert!(ledger.finish(id(partition, 7, offset), index, records[pick]));
                done.insert(records[pick]);
                if step % every != 0 && step + 1 != order.len() {
                    continue;
                }
                for finished in ledger.take_finished() {
                    let place = usize::try_from(finished.partition).unwrap();
                    prop_assert!(finished.next_offset > committed[place]);
                    for &(partition, offset, index) in &finished.outcomes {
                        prop_assert_eq!(partition, finished.partition);
                        prop_assert!(offset >= committed[place] && offset < finished.next_offset);
                        prop_assert!(seen.insert((partition, offset, index)), "taken twice");
                    }
                    for &record in &records {
                        if record.0 == finished.partition && record.1 < finished.next_offset {
                            prop_assert!(done.contains(&record), "committed past unfinished work");
                            prop_assert!(seen.contains(&record), "committed without its outcome");
                        }
                    }
                    committed[place] = finished.next_offset;
                }
            }
            drop(ledger.take_finished());
            prop_assert_eq!(in_flight.references(), 0);
            prop_assert_eq!(seen.len(), records.len());
        }

        /// A rewind at any moment: what was taken before it and what is redone after it are
        /// disjoint and complete, whatever late work of the old epoch still arrives.
        #[test]
        fn a_rewind_repeats_only_what_was_not_committed(
            (messages, order) in schedules(),
            cut in 0..100_usize,
        ) {
            let (mut ledger, in_flight) = (Ledger::default(), InFlight::default());
            let mut records = Vec::new();
            for &(partition, offset, count) in &messages {
                prop_assert!(ledger.track(id(partition, 1, offset), count, in_flight.enter(count)));
                records.extend((0..count).map(|index| (partition, offset, index)));
            }
            let (early, late) = order.split_at(cut.min(order.len()));
            for &pick in early {
                let (partition, offset, index) = records[pick];
                ledger.finish(id(partition, 1, offset), index, records[pick]);
            }
            let mut seen = BTreeSet::new();
            let mut committed = [0_i64; 3];
            for finished in ledger.take_finished() {
                committed[usize::try_from(finished.partition).unwrap()] = finished.next_offset;
                seen.extend(finished.outcomes);
            }
            ledger.clear();
            let again = |&(partition, offset): &(i32, i64)| {
                offset >= committed[usize::try_from(partition).unwrap()]
            };
            for &(partition, offset, count) in &messages {
                if again(&(partition, offset)) {
                    prop_assert!(ledger.track(id(partition, 2, offset), count, in_flight.enter(count)));
                }
            }
            for &pick in late {
                let (partition, offset, index) = records[pick];
                prop_assert!(!ledger.finish(id(partition, 1, offset), index, records[pick]));
            }
            for &record in records.iter().filter(|record| again(&(record.0, record.1))) {
                prop_assert!(ledger.finish(id(record.0, 2, record.1), record.2, record));
            }
            for finished in ledger.take_finished() {
                for record in finished.outcomes {
                    prop_assert!(seen.insert(record), "committed twice");
                }
            }
            prop_assert_eq!(seen.len(), records.len());
        }
    }
}
