//! The consumer's callbacks: the group assigns partitions and takes them away.
//!
//! They run inside `poll`, on the polling thread.
//!
//! - Assigned: a new epoch. librdkafka gets the partitions when their offsets are known
//!   (`start_offsets`).
//! - Revoked: the publisher commits what is finished (waited for within a bound), the epochs end,
//!   then `incremental_unassign`.
//! - Lost: the epochs end at once, since somebody else may own the partitions already.
//!
//! The order counts: work of a partition is stale before librdkafka lets the partition go.
//! Correctness rests neither on the bound nor on the "lost" flag: late work carries a group
//! generation that the broker refuses.

use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use crate::config::Kafka;
use crate::error::{Error, ErrorKind};
use crate::kafka::log::forward_line;
use crate::worker::consume::pause::{PausedPartitions, partition_list};
use crate::worker::consume::start_offsets::StartOffsets;
use crate::worker::outbox::event::PublisherEvent;
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;

/// The consumer's context.
pub struct Rebalancer {
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    publisher: Sender<PublisherEvent>,
    /// How long a revocation waits for the publisher.
    flush_timeout: Duration,
    paused: Arc<PausedPartitions>,
    starts: Arc<StartOffsets>,
    topic: Arc<str>,
    last_error: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Rebalancer {
    pub fn new(
        kafka: &Kafka,
        ownership: Arc<Ownership>,
        run: Arc<Run>,
        publisher: Sender<PublisherEvent>,
        flush_timeout: Duration,
    ) -> Self {
        let topic: Arc<str> = kafka.input_topic.as_str().into();
        let reset = kafka.properties.get("auto.offset.reset").map(String::as_str);
        Self {
            ownership,
            run,
            publisher,
            flush_timeout,
            paused: Arc::new(PausedPartitions::new(Arc::clone(&topic))),
            starts: Arc::new(StartOffsets::new(Arc::clone(&topic), reset)),
            topic,
            last_error: Mutex::default(),
        }
    }

    pub fn paused(&self) -> &Arc<PausedPartitions> {
        &self.paused
    }

    pub fn starts(&self) -> &Arc<StartOffsets> {
        &self.starts
    }

    /// librdkafka's last error about its connections, other than that it has none.
    pub fn last_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last_error.lock().clone()
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, given: &TopicPartitionList) -> KafkaResult<()> {
        let partitions = numbers(given);
        for &partition in &partitions {
            self.ownership.assign(partition);
        }
        self.starts.assign(&partitions);
        // Ends the rebalance.
        consumer.incremental_assign(&TopicPartitionList::new())?;
        tracing::info!(
            ?partitions,
            assigned = ?self.ownership.partitions(),
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
            let _ = self.publisher.send(PublisherEvent::Lost { partitions: partitions.clone() });
        } else {
            self.flush(&partitions);
            self.forget(&partitions);
        }
        self.paused.release(consumer, &partitions)?;
        let started = self.starts.revoke(&partitions);
        consumer.incremental_unassign(&partition_list(&self.topic, started))?;
        tracing::info!(
            ?partitions,
            lost,
            assigned = ?self.ownership.partitions(),
            "partitions revoked"
        );
        Ok(())
    }

    fn flush(&self, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        let (done, answer) = sync_channel(1);
        let asked =
            self.publisher.send(PublisherEvent::Revoked { partitions: partitions.to_vec(), done });
        if asked.is_ok()
            && answer.recv_timeout(self.flush_timeout).is_err()
            && !self.run.has_failed()
        {
            tracing::warn!(?partitions, "finished work was not committed before the revocation");
        }
    }

    fn forget(&self, partitions: &[i32]) {
        for &partition in partitions {
            self.ownership.remove(partition);
        }
    }
}

impl ClientContext for Rebalancer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        forward_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, client = "consumer", "kafka client error");
        let mut last = self.last_error.lock();
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
            self.run.fail(
                Error::new(ErrorKind::Kafka, "the assignment could not be changed")
                    .with_source(error),
            );
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}
