//! Where reading begins: at a partition's committed offset, or where `auto.offset.reset` points.
//!
//! The worker looks the committed offset up and hands librdkafka an explicit one. librdkafka 2.12
//! can look it up, too, with two faults. It takes an offset that an open transaction keeps unstable
//! (KIP-447) for no offset if the group rebalances meanwhile (`rd_kafka_assignment_apply_offsets`).
//! And it lets all partitions of one assignment wait for the last one.
//!
//! An offset is unstable for as long as the transaction of a dead worker is open. Each assignment
//! has a thread that waits for its offsets, so that the polling thread goes on with the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::error::{Error, ErrorKind, Result};
use crate::kafka::error::kafka_error;
use crate::worker::consume::pause::partition_list;

/// Timeout of one lookup. A lookup of one partition begins with the shorter one, so that many
/// unstable offsets delay a stable one little, and doubles it each time.
const TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_TIMEOUT: Duration = Duration::from_millis(250);
const TIMED_OUT: RDKafkaErrorCode = RDKafkaErrorCode::OperationTimedOut;
const NO_OFFSET: RDKafkaErrorCode = RDKafkaErrorCode::AutoOffsetReset;
/// Pause between two rounds of lookups, and after an error.
const PAUSE: Duration = Duration::from_millis(200);
const ERROR_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct StartOffsets {
    topic: Arc<str>,
    /// Where a partition without a committed offset begins; None if that is an error.
    reset: Option<Offset>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Partitions that no lookup was started for.
    assigned: BTreeSet<i32>,
    lookups: u64,
    /// Partitions whose offset is being looked up, each with the number of its lookup.
    waiting: BTreeMap<i32, u64>,
    /// Partitions that librdkafka can be given now.
    found: BTreeMap<i32, Offset>,
    /// Partitions that librdkafka was given.
    started: BTreeMap<i32, Offset>,
    error: Option<KafkaError>,
}

impl StartOffsets {
    /// `reset`: the property `auto.offset.reset`.
    pub fn new(topic: Arc<str>, reset: Option<&str>) -> Self {
        let reset = match reset.map(str::to_ascii_lowercase).as_deref() {
            None | Some("earliest" | "smallest" | "beginning") => Some(Offset::Beginning),
            Some("latest" | "largest" | "end") => Some(Offset::End),
            Some(_) => None,
        };
        Self { topic, reset, state: Mutex::default() }
    }

    /// Notes partitions whose offsets are to be looked up.
    pub fn assign(&self, partitions: &[i32]) {
        self.state.lock().assigned.extend(partitions);
    }

    /// Forgets partitions; returns those of them that librdkafka was given.
    pub fn revoke(&self, partitions: &[i32]) -> Vec<i32> {
        let mut state = self.state.lock();
        for partition in partitions {
            state.assigned.remove(partition);
            state.waiting.remove(partition);
            state.found.remove(partition);
        }
        let started = partitions.iter().copied();
        started.filter(|partition| state.started.remove(partition).is_some()).collect()
    }

    /// The partitions that librdkafka was given.
    pub fn started(&self) -> Vec<i32> {
        self.state.lock().started.keys().copied().collect()
    }

    /// Where reading of a partition began.
    pub fn of(&self, partition: i32) -> Option<Offset> {
        self.state.lock().started.get(&partition).copied()
    }

    /// Ends all lookups.
    pub fn stop(&self) {
        self.state.lock().waiting.clear();
    }

    /// An error of a lookup, once. The lookup goes on.
    pub fn take_error(&self) -> Option<KafkaError> {
        self.state.lock().error.take()
    }

    /// Looks up the offsets of newly assigned partitions, and starts those that are known. Called
    /// by the polling thread.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if librdkafka refuses the assignment, `ErrorKind::Io` without a thread.
    pub fn start<C: ConsumerContext + 'static>(
        self: &Arc<Self>,
        consumer: &Arc<BaseConsumer<C>>,
    ) -> Result<()> {
        let mut state = self.state.lock();
        if !state.assigned.is_empty() {
            state.lookups += 1;
            let number = state.lookups;
            let assigned = std::mem::take(&mut state.assigned);
            state.waiting.extend(assigned.into_iter().map(|partition| (partition, number)));
            // The thread must not keep the consumer open.
            let (offsets, consumer) = (Arc::clone(self), Arc::downgrade(consumer));
            let thread = std::thread::Builder::new().name("start offsets".to_owned());
            thread.spawn(move || offsets.look_up_all(number, &consumer)).map_err(|error| {
                Error::new(ErrorKind::Io, "can't start a thread").with_source(error)
            })?;
        }
        // A lost assignment is revoked at the next poll; librdkafka would forget that it is lost.
        if state.found.is_empty() || consumer.assignment_lost() {
            return Ok(());
        }
        let found = std::mem::take(&mut state.found);
        self.list(&found)
            .and_then(|list| consumer.incremental_assign(&list))
            .map_err(|error| kafka_error("the assignment could not be changed", error))?;
        tracing::info!(offsets = ?found, "reading partitions");
        state.started.extend(found);
        Ok(())
    }

    fn list(&self, offsets: &BTreeMap<i32, Offset>) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (&partition, &offset) in offsets {
            list.add_partition_offset(&self.topic, partition, offset)?;
        }
        Ok(list)
    }

    /// Looks partitions up until all are found or revoked, or the consumer is gone.
    fn look_up_all<C: ConsumerContext>(&self, number: u64, consumer: &Weak<BaseConsumer<C>>) {
        let mut timeout = FIRST_TIMEOUT;
        loop {
            let waiting = self.waiting(number);
            let mut result = self.look_up(number, &waiting, TIMEOUT, consumer);
            if is_timeout(&result) && waiting.len() > 1 {
                // One unstable offset delays the answer for all.
                for partition in waiting {
                    if self.waiting(number).contains(&partition) {
                        result = self.look_up(number, &[partition], timeout, consumer);
                    }
                }
            }
            let waiting = self.waiting(number);
            if waiting.is_empty() || consumer.strong_count() == 0 {
                return;
            }
            if timeout == FIRST_TIMEOUT {
                tracing::info!(
                    partitions = ?waiting,
                    "waiting for stable offsets: a transaction may be open"
                );
            }
            timeout = TIMEOUT.min(timeout * 2);
            match result {
                Err(error) if error.rdkafka_error_code() != Some(TIMED_OUT) => {
                    self.state.lock().error = Some(error);
                    std::thread::sleep(ERROR_PAUSE);
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    /// # Errors
    /// `TIMED_OUT` if an offset is unstable, or no broker answers; any other error of a request or
    /// of a partition.
    fn look_up<C: ConsumerContext>(
        &self,
        number: u64,
        partitions: &[i32],
        timeout: Duration,
        consumer: &Weak<BaseConsumer<C>>,
    ) -> KafkaResult<()> {
        let list = partition_list(&self.topic, partitions.iter().copied());
        let Some(consumer) = consumer.upgrade() else { return Ok(()) };
        let committed = consumer.committed_offsets(list, timeout)?;
        let mut result = Ok(());
        for found in committed.elements() {
            let found =
                found.error().and_then(|()| self.found(number, found.partition(), found.offset()));
            result = result.and(found);
        }
        result
    }

    fn waiting(&self, number: u64) -> Vec<i32> {
        let state = self.state.lock();
        let waiting = state.waiting.iter().filter(|(_, lookup)| **lookup == number);
        waiting.map(|(&partition, _)| partition).collect()
    }

    fn found(&self, number: u64, partition: i32, committed: Offset) -> KafkaResult<()> {
        let mut state = self.state.lock();
        // Otherwise the partition was revoked meanwhile.
        if state.waiting.get(&partition) == Some(&number) {
            let offset = match committed {
                Offset::Offset(_) => committed,
                _ => self.reset.ok_or(KafkaError::MessageConsumption(NO_OFFSET))?,
            };
            state.waiting.remove(&partition);
            state.found.insert(partition, offset);
        }
        Ok(())
    }
}

fn is_timeout(result: &KafkaResult<()>) -> bool {
    result.as_ref().is_err_and(|error| error.rdkafka_error_code() == Some(TIMED_OUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(partitions: &[i32], number: u64) -> StartOffsets {
        let offsets = StartOffsets::new("images.in".into(), Some("latest"));
        let waiting = partitions.iter().map(|&partition| (partition, number));
        offsets.state.lock().waiting.extend(waiting);
        offsets
    }

    #[test]
    fn a_partition_without_a_committed_offset_begins_where_the_reset_says() {
        let reset = |value| StartOffsets::new("images.in".into(), value).reset;
        assert_eq!(reset(None), Some(Offset::Beginning));
        assert_eq!(reset(Some("smallest")), Some(Offset::Beginning));
        assert_eq!(reset(Some("Latest")), Some(Offset::End));
        assert_eq!(reset(Some("error")), None);
        let offsets = waiting(&[0, 1], 7);
        offsets.found(7, 0, Offset::Offset(12)).unwrap();
        offsets.found(7, 1, Offset::Invalid).unwrap();
        let expected = BTreeMap::from([(0, Offset::Offset(12)), (1, Offset::End)]);
        assert_eq!(offsets.state.lock().found, expected);
        assert!(offsets.waiting(7).is_empty());
    }

    #[test]
    fn without_a_reset_a_missing_offset_is_an_error() {
        let offsets = StartOffsets::new("images.in".into(), Some("error"));
        offsets.state.lock().waiting.insert(0, 1);
        let error = offsets.found(1, 0, Offset::Invalid).unwrap_err();
        assert_eq!(error.rdkafka_error_code(), Some(NO_OFFSET));
        assert!(offsets.state.lock().found.is_empty());
    }

    #[test]
    fn the_offset_of_an_earlier_assignment_does_not_count() {
        let offsets = waiting(&[3], 1);
        assert!(offsets.revoke(&[3]).is_empty(), "librdkafka does not know it");
        offsets.found(1, 3, Offset::Offset(12)).unwrap();
        assert!(offsets.state.lock().found.is_empty());
        offsets.state.lock().waiting.insert(3, 2);
        offsets.found(1, 3, Offset::Offset(12)).unwrap();
        assert!(offsets.state.lock().found.is_empty());
        assert_eq!(offsets.waiting(2), [3]);
    }
}
