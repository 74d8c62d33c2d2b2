//! The partitions that this consumer has paused.
//!
//! Only these may be resumed (librdkafka #2593, #4637), and librdkafka keeps the mark beyond the
//! assignment.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;

#[derive(Debug)]
pub struct PausedPartitions {
    topic: Arc<str>,
    partitions: Mutex<BTreeSet<i32>>,
}

impl PausedPartitions {
    pub fn new(topic: Arc<str>) -> Self {
        Self { topic, partitions: Mutex::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.partitions.lock().is_empty()
    }

    /// Pauses those of `assigned` that run.
    pub fn pause_all<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        mut assigned: Vec<i32>,
    ) -> KafkaResult<()> {
        let mut paused = self.partitions.lock();
        assigned.retain(|partition| !paused.contains(partition));
        if assigned.is_empty() {
            return Ok(());
        }
        consumer.pause(&partition_list(&self.topic, assigned.iter().copied()))?;
        tracing::debug!(partitions = ?assigned, "paused");
        paused.extend(assigned);
        Ok(())
    }

    pub fn resume_all<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) -> KafkaResult<()> {
        let mut paused = self.partitions.lock();
        if paused.is_empty() {
            return Ok(());
        }
        consumer.resume(&partition_list(&self.topic, paused.iter().copied()))?;
        tracing::debug!(partitions = ?paused, "resumed");
        paused.clear();
        Ok(())
    }

    /// Takes the mark off partitions that leave the assignment.
    pub fn release<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &[i32],
    ) -> KafkaResult<()> {
        let mut paused = self.partitions.lock();
        let released: Vec<i32> =
            partitions.iter().copied().filter(|partition| paused.remove(partition)).collect();
        drop(paused);
        if released.is_empty() {
            return Ok(());
        }
        consumer.resume(&partition_list(&self.topic, released))
    }
}

/// Partitions of `topic`, without offsets.
pub fn partition_list(
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, partition);
    }
    list
}
