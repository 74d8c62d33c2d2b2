//! Who owns what now: the assigned partitions, their epochs, and the group metadata.
//!
//! A partition gets a new epoch each time it is assigned and each time it is rewound; every piece
//! of work carries the epoch under which it was polled, and a stage drops work whose epoch is
//! over. Between a failed transaction and its rewind a partition has *no* epoch, so that nothing
//! polled in between can be tracked: its messages will be read again.
//!
//! The group metadata lies beside the epochs, under the same lock, and is refreshed only by the
//! polling thread: a transaction reads ownership and metadata in one step, and never asks the
//! consumer at commit time, when it may already speak of a generation whose revocations have not
//! been served yet.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// Shared by all stages. `G` is the group metadata: what the broker is shown at a commit.
pub struct Assignment<G> {
    state: Mutex<State<G>>,
}

struct State<G> {
    partitions: BTreeMap<i32, Partition>,
    last_epoch: u64,
    /// A transaction has failed and not ended: committed offsets are not the truth yet.
    unsettled: bool,
    group: Option<Arc<G>>,
}

struct Partition {
    /// None until it is rewound.
    epoch: Option<u64>,
    /// First offset polled since it was assigned, even if its message was dropped.
    first: Option<i64>,
    /// Offset behind the last one polled under this epoch.
    next: Option<i64>,
}

/// A partition that must go back to its committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewind {
    pub partition: i32,
    /// Where to begin if nothing was ever committed: what `auto.offset.reset` chose when the
    /// partition was assigned. None when nothing has been polled: then it need not move.
    pub first: Option<i64>,
}

/// How a polled message is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Its work belongs to this epoch.
    Taken { epoch: u64 },
    /// Its partition is not owned or waits for its rewind: it will be read again.
    Dropped,
    /// Its offset was polled before: its partition now waits for a rewind.
    WentBack,
}

impl<G> Default for Assignment<G> {
    fn default() -> Self {
        let partitions = BTreeMap::new();
        let state = State { partitions, last_epoch: 0, unsettled: false, group: None };
        Self { state: Mutex::new(state) }
    }
}

impl<G> Assignment<G> {
    /// Adds a partition under a new epoch.
    pub fn assign(&self, partition: i32) -> u64 {
        let mut state = self.state.lock();
        state.last_epoch += 1;
        let epoch = state.last_epoch;
        state
            .partitions
            .insert(partition, Partition { epoch: Some(epoch), first: None, next: None });
        epoch
    }

    /// Removes a partition: its work is stale from now on.
    pub fn remove(&self, partition: i32) {
        self.state.lock().partitions.remove(&partition);
    }

    /// Notes a polled offset, and returns how its message is handled.
    ///
    /// If an offset comes twice, librdkafka repeated it, or the topic was recreated or truncated.
    /// The partition is suspended and rewound to the committed offset. If that offset no longer
    /// exists, `auto.offset.reset` decides.
    pub fn polled(&self, partition: i32, offset: i64) -> Polled {
        let mut state = self.state.lock();
        let Some(owned) = state.partitions.get_mut(&partition) else {
            return Polled::Dropped;
        };
        owned.first.get_or_insert(offset);
        let Some(epoch) = owned.epoch else {
            return Polled::Dropped;
        };
        if owned.next.is_some_and(|next| offset < next) {
            owned.epoch = None;
            return Polled::WentBack;
        }
        owned.next = Some(offset.saturating_add(1));
        Polled::Taken { epoch }
    }

    /// Whether work of `epoch` on `partition` still counts; every hand-over asks.
    pub fn is_current(&self, partition: i32, epoch: u64) -> bool {
        self.state.lock().partitions.get(&partition).is_some_and(|owned| owned.epoch == Some(epoch))
    }

    /// Makes all work in flight stale, until [`Assignment::rewound`].
    pub fn suspend_all(&self) {
        let mut state = self.state.lock();
        state.unsettled = true;
        for owned in state.partitions.values_mut() {
            owned.epoch = None;
        }
    }

    /// The failed transaction is over: committed offsets are the truth again.
    pub fn allow_rewind(&self) {
        self.state.lock().unsettled = false;
    }

    /// Whether some partition waits for its rewind.
    pub fn is_suspended(&self) -> bool {
        self.state.lock().partitions.values().any(|owned| owned.epoch.is_none())
    }

    /// The partitions to rewind now.
    pub fn to_rewind(&self) -> Vec<Rewind> {
        let state = self.state.lock();
        if state.unsettled {
            return Vec::new();
        }
        let suspended = state.partitions.iter().filter(|(_, owned)| owned.epoch.is_none());
        suspended.map(|(&partition, owned)| Rewind { partition, first: owned.first }).collect()
    }

    /// The partition has been rewound: it goes on under a new epoch. Does nothing when it was
    /// suspended anew in the meantime.
    pub fn rewound(&self, partition: i32) {
        let mut state = self.state.lock();
        if state.unsettled {
            return;
        }
        state.last_epoch += 1;
        let epoch = state.last_epoch;
        if let Some(owned) = state.partitions.get_mut(&partition) {
            owned.epoch = Some(epoch);
            owned.next = None;
        }
    }

    pub fn partitions(&self) -> Vec<i32> {
        self.state.lock().partitions.keys().copied().collect()
    }

    pub fn set_group(&self, group: Arc<G>) {
        self.state.lock().group = Some(group);
    }

    /// Returns the given (partition, epoch) pairs that are current, and the group metadata, read
    /// under one lock.
    pub fn snapshot(
        &self,
        wanted: impl IntoIterator<Item = (i32, u64)>,
    ) -> (Vec<i32>, Option<Arc<G>>) {
        let state = self.state.lock();
        let current = wanted
            .into_iter()
            .filter(|(partition, epoch)| {
                state.partitions.get(partition).is_some_and(|owned| owned.epoch == Some(*epoch))
            })
            .map(|(partition, _)| partition)
            .collect();
        (current, state.group.clone())
    }
}

impl<G> fmt::Debug for Assignment<G> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs: BTreeMap<i32, Option<u64>> = self
            .state
            .lock()
            .partitions
            .iter()
            .map(|(&partition, owned)| (partition, owned.epoch))
            .collect();
        formatter.debug_struct("Assignment").field("epochs", &epochs).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_ends_with_its_assignment() {
        let assignment = Assignment::<()>::default();
        let first = assignment.assign(3);
        assert_eq!(assignment.polled(3, 10), Polled::Taken { epoch: first });
        assert!(assignment.is_current(3, first));
        assignment.remove(3);
        assert!(!assignment.is_current(3, first));
        assert_eq!(assignment.polled(3, 11), Polled::Dropped);
        let second = assignment.assign(3);
        assert!(second > first);
        assert!(!assignment.is_current(3, first));
        assert_eq!(assignment.polled(3, 5), Polled::Taken { epoch: second });
    }

    #[test]
    fn an_offset_that_comes_again_makes_its_partition_move_back() {
        let assignment = Assignment::<()>::default();
        let epoch = assignment.assign(0);
        assert_eq!(assignment.polled(0, 10), Polled::Taken { epoch });
        assert_eq!(assignment.polled(0, 12), Polled::Taken { epoch }, "offsets may skip");
        assert_eq!(assignment.polled(0, 12), Polled::WentBack);
        assert_eq!(assignment.polled(0, 13), Polled::Dropped);
        assert!(!assignment.is_current(0, epoch));
        assert_eq!(assignment.to_rewind(), [Rewind { partition: 0, first: Some(10) }]);
        assignment.rewound(0);
        let again = assignment.polled(0, 3);
        assert!(matches!(again, Polled::Taken { epoch: new } if new > epoch), "{again:?}");
    }

    #[test]
    fn nothing_is_taken_between_a_failed_transaction_and_its_rewind() {
        let assignment = Assignment::<()>::default();
        let old = assignment.assign(0);
        assignment.assign(1);
        assert_eq!(assignment.polled(0, 10), Polled::Taken { epoch: old });
        assignment.suspend_all();
        assert!(assignment.is_suspended());
        assert!(!assignment.is_current(0, old));
        assert_eq!(assignment.polled(0, 11), Polled::Dropped);
        assert_eq!(assignment.to_rewind(), []);
        assignment.rewound(0);
        assert_eq!(assignment.polled(0, 11), Polled::Dropped, "the transaction is not over yet");
        assignment.allow_rewind();
        let expected =
            [Rewind { partition: 0, first: Some(10) }, Rewind { partition: 1, first: None }];
        assert_eq!(assignment.to_rewind(), expected);
        assignment.rewound(0);
        assignment.rewound(1);
        assert!(!assignment.is_suspended());
        let again = assignment.polled(0, 10);
        assert!(matches!(again, Polled::Taken { epoch } if epoch > old), "{again:?}");
    }

    #[test]
    fn a_message_dropped_while_suspended_makes_its_partition_move_back() {
        let assignment = Assignment::<()>::default();
        assignment.assign(0);
        assignment.suspend_all();
        assert_eq!(assignment.polled(0, 7), Polled::Dropped);
        assignment.allow_rewind();
        assert_eq!(assignment.to_rewind(), [Rewind { partition: 0, first: Some(7) }]);
    }

    #[test]
    fn a_partition_assigned_during_a_suspension_is_not_rewound() {
        let assignment = Assignment::<()>::default();
        assignment.assign(0);
        assignment.suspend_all();
        let epoch = assignment.assign(1);
        assignment.allow_rewind();
        assert_eq!(assignment.to_rewind(), [Rewind { partition: 0, first: None }]);
        assert!(assignment.is_current(1, epoch));
    }

    #[test]
    fn a_snapshot_names_what_is_owned() {
        let assignment = Assignment::<()>::default();
        let first = assignment.assign(0);
        let second = assignment.assign(1);
        let (current, group) = assignment.snapshot([(0, first), (1, second + 1), (2, 1)]);
        assert_eq!(current, [0]);
        assert!(group.is_none());
    }
}
