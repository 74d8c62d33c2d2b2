//! What happens when the group gives partitions or takes them: the consumer's callbacks.
//!
//! They run inside `poll`, on the polling thread. Given: a new epoch, then `incremental_assign`.
//! Taken: the publisher commits what is finished (waited for within a bound), the epochs end, then
//! `incremental_unassign`. Lost: the epochs end at once, since somebody else may own them already.
//! The order is what counts: work of a partition is stale before librdkafka lets it go.
//!
//! Neither the bound nor the "lost" flag is what correctness rests on: whatever slips through
//! carries a group generation that the broker refuses.

use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use crate::error::{Error, ErrorKind};
use crate::kafka::log;
use crate::worker::context::Shared;
use crate::worker::publish::event::Event;

/// The consumer's context.
pub struct Rebalancer {
    topic: Arc<str>,
    shared: Arc<Shared>,
    publisher: Sender<Event>,
    /// How long a revocation waits for the publisher.
    flush_limit: Duration,
    /// Partitions that this consumer has paused: only these may be resumed (librdkafka #2593,
    /// #4637), and librdkafka keeps the mark beyond the assignment.
    paused: Mutex<BTreeSet<i32>>,
    last_error: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Rebalancer {
    pub fn new(
        topic: Arc<str>,
        shared: Arc<Shared>,
        publisher: Sender<Event>,
        flush_limit: Duration,
    ) -> Self {
        Self {
            topic,
            shared,
            publisher,
            flush_limit,
            paused: Mutex::new(BTreeSet::new()),
            last_error: Mutex::new(None),
        }
    }

    pub fn paused(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What librdkafka said last about its connections, other than that it has none.
    pub fn last_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A list of partitions of the input topic.
    pub fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, given: &TopicPartitionList) -> KafkaResult<()> {
        let partitions = numbers(given);
        for &partition in &partitions {
            self.shared.assignment.assign(partition);
        }
        consumer.incremental_assign(given)?;
        tracing::info!(
            ?partitions,
            assigned = ?self.shared.assignment.partitions(),
            "partitions assigned"
        );
        Ok(())
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, taken: &TopicPartitionList) -> KafkaResult<()> {
        let partitions = numbers(taken);
        let lost = consumer.assignment_lost();
        if lost {
            self.forget(&partitions);
            // The publisher has gone when the worker is closing: then there is nothing to abort.
            let _ = self.publisher.send(Event::Lost { partitions: partitions.clone() });
        } else {
            self.flush(&partitions);
            self.forget(&partitions);
        }
        let paused: Vec<i32> = {
            let mut paused = self.paused();
            partitions.iter().copied().filter(|partition| paused.remove(partition)).collect()
        };
        if !paused.is_empty() {
            consumer.resume(&self.list(paused))?;
        }
        consumer.incremental_unassign(taken)?;
        tracing::info!(
            ?partitions,
            lost,
            assigned = ?self.shared.assignment.partitions(),
            "partitions revoked"
        );
        Ok(())
    }

    fn flush(&self, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        let (done, answer) = sync_channel(1);
        let asked = self.publisher.send(Event::Revoked { partitions: partitions.to_vec(), done });
        if asked.is_ok()
            && answer.recv_timeout(self.flush_limit).is_err()
            && !self.shared.has_failed()
        {
            tracing::warn!(?partitions, "finished work was not committed before the revocation");
        }
    }

    fn forget(&self, partitions: &[i32]) {
        for &partition in partitions {
            self.shared.assignment.remove(partition);
        }
    }
}

impl ClientContext for Rebalancer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, client = "consumer", "kafka client error");
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) if last.is_some() => {}
            Some(code) => *last = Some((code, reason.to_owned())),
            None => {}
        }
    }
}

impl ConsumerContext for Rebalancer {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let outcome = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assign(consumer, partitions)
            }
            _ => self.revoke(consumer, partitions),
        };
        if let Err(error) = outcome {
            self.shared.fail(
                Error::new(ErrorKind::Kafka, "the assignment could not be changed").because(error),
            );
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}
