//! The coordinators' own word on every transaction, followed live: `__transaction_state`.
//!
//! Its records are keyed by transactional id and hold a state, in Kafka's documented layout
//! (`TransactionLogKey.json`, `TransactionLogValue.json`), and the broker stamps them. So it can
//! be said afterwards, without a guess, whether a transaction was open at some moment, and what
//! became of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

const TOPIC: &str = "__transaction_state";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ongoing,
    Committing,
    Aborting,
    /// Empty, complete or dead: nothing is open.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    /// Milliseconds since 1970.
    at: i64,
    state: State,
}

/// How the transaction ended that was open at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Committed,
    Aborted,
    /// It has not, so far.
    Open,
}

type History = HashMap<String, Vec<Change>>;

pub struct Transactions {
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    follower: Option<JoinHandle<()>>,
}

impl Transactions {
    /// Follows from the beginning; the topic exists as soon as a transactional producer does.
    pub fn follow(bootstrap: &str) -> Self {
        let consumer: BaseConsumer = super::consumer(bootstrap, "read_uncommitted")
            // Its own transactions are not transactional, and it is small.
            .set("fetch.wait.max.ms", "100")
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(TOPIC), Duration::from_secs(30)).unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition_offset(TOPIC, partition.id(), Offset::Beginning).unwrap();
        }
        assert!(partitions.count() > 0, "{TOPIC} has no partitions");
        consumer.assign(&partitions).unwrap();
        let (history, stop) = (Arc::<Mutex<History>>::default(), Arc::<AtomicBool>::default());
        let (written, stopped) = (Arc::clone(&history), Arc::clone(&stop));
        let follower = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A broker that is away is an error that passes.
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else {
                    continue;
                };
                let (Some(key), Some(value)) = (message.key(), message.payload()) else {
                    continue;
                };
                let at = message.timestamp().to_millis().expect("a stamp");
                let id = read_id(key).expect("a transactional id");
                let state = read_state(value).expect("a state");
                written.lock().unwrap().entry(id).or_default().push(Change { at, state });
            }
        });
        Self { history, stop, follower: Some(follower) }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// Whether the last word on `id` is that its transaction is open.
    pub fn is_open(&self, id: &str) -> bool {
        self.history().get(id).and_then(|changes| changes.last()).is_some_and(is_open)
    }

    pub fn any_is_open(&self) -> bool {
        self.history().values().any(|changes| changes.last().is_some_and(is_open))
    }

    /// The end of the transaction of `id` that was open from `from` to `to`; None if none was.
    pub fn open_during(&self, id: &str, from: i64, to: i64) -> Option<End> {
        self.history().get(id).and_then(|changes| open_during(changes, from, to))
    }

    /// Whether any transaction was.
    pub fn any_open_during(&self, from: i64, to: i64) -> bool {
        self.history().values().any(|changes| open_during(changes, from, to).is_some())
    }

    /// Transactions committed and aborted so far.
    pub fn ended(&self) -> (usize, usize) {
        let history = self.history();
        let count = |state| {
            let all = history.values().flatten();
            all.filter(|change| change.state == state).count()
        };
        (count(State::Committing), count(State::Aborting))
    }
}

impl Drop for Transactions {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(follower) = self.follower.take() {
            let _ = follower.join();
        }
    }
}

fn is_open(change: &Change) -> bool {
    change.state == State::Ongoing
}

/// A transaction reaches from its first `Ongoing` to the first state that is not.
fn open_during(changes: &[Change], from: i64, to: i64) -> Option<End> {
    let last_before = changes.iter().rposition(|change| change.at <= from)?;
    if !is_open(&changes[last_before]) {
        return None;
    }
    let Some(end) = changes[last_before..].iter().find(|change| !is_open(change)) else {
        return Some(End::Open);
    };
    (end.at > to).then_some(match end.state {
        State::Committing => End::Committed,
        _ => End::Aborted,
    })
}

/// Version (two bytes), length (two), text.
fn read_id(key: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*key.get(2)?, *key.get(3)?]));
    String::from_utf8(key.get(4..4 + length)?.to_vec()).ok()
}

/// Version (two bytes), producer id (eight), epoch (two), time-out (four), state (one).
fn read_state(value: &[u8]) -> Option<State> {
    Some(match value.get(16)? {
        1 => State::Ongoing,
        2 => State::Committing,
        // Also when a newer producer fences the one that has it open.
        3 | 7 => State::Aborting,
        0 | 4 | 5 | 6 => State::Over,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_open_from_its_beginning_to_its_end() {
        let change = |at, state| Change { at, state };
        let changes = [
            change(0, State::Over),
            change(10, State::Ongoing),
            change(12, State::Ongoing),
            change(20, State::Committing),
            change(21, State::Over),
            change(30, State::Ongoing),
            change(40, State::Aborting),
            change(41, State::Over),
            change(50, State::Ongoing),
        ];
        assert_eq!(open_during(&changes, 11, 19), Some(End::Committed));
        assert_eq!(open_during(&changes, 35, 35), Some(End::Aborted));
        assert_eq!(open_during(&changes, 55, 99), Some(End::Open));
        for (from, to) in [(5, 5), (5, 15), (15, 20), (20, 20), (25, 25), (35, 50)] {
            assert_eq!(open_during(&changes, from, to), None, "{from} to {to}");
        }
    }
}
