//! After a failed transaction: every partition goes back to its committed offset.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;

use crate::worker::consume::pause::partition_list;
use crate::worker::exactly_once::assignment::Rewind;
use crate::worker::ownership::Ownership;

#[derive(Debug)]
pub struct Rewinder {
    topic: Arc<str>,
    ownership: Arc<Ownership>,
    /// Timeout of each of the two calls.
    timeout: Duration,
}

impl Rewinder {
    pub fn new(topic: Arc<str>, ownership: Arc<Ownership>, timeout: Duration) -> Self {
        Self { topic, ownership, timeout }
    }

    /// Rewinds the partitions that wait for it. One that can't be rewound yet is tried again at the
    /// next call.
    pub fn rewind<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) {
        let (polled, untouched): (Vec<_>, Vec<_>) =
            self.ownership.to_rewind().into_iter().partition(|rewind| rewind.first.is_some());
        for rewind in untouched {
            // Nothing of it has been polled: it stands where it was assigned.
            self.ownership.rewound(rewind.partition);
        }
        if !polled.is_empty()
            && let Err(error) = self.seek(consumer, &polled)
        {
            tracing::warn!(%error, "a rewind failed and will be tried again");
        }
    }

    /// Seeks each partition to its committed offset, or to the first polled one where nothing is
    /// committed: that is the choice of `auto.offset.reset`.
    fn seek<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        rewinds: &[Rewind],
    ) -> KafkaResult<()> {
        let numbers = rewinds.iter().map(|rewind| rewind.partition);
        let committed =
            consumer.committed_offsets(partition_list(&self.topic, numbers), self.timeout)?;
        let mut targets = partition_list(&self.topic, []);
        for rewind in rewinds {
            let Some(found) = committed.find_partition(&self.topic, rewind.partition) else {
                continue;
            };
            found.error()?;
            let offset = match (found.offset(), rewind.first) {
                (Offset::Offset(offset), _) | (_, Some(offset)) => offset,
                (_, None) => continue,
            };
            targets.add_partition_offset(&self.topic, rewind.partition, Offset::Offset(offset))?;
            tracing::info!(partition = rewind.partition, offset, "rewinding");
        }
        let sought = consumer.seek_partitions(targets, self.timeout)?;
        let mut failure = None;
        for element in sought.elements() {
            match element.error() {
                Ok(()) => self.ownership.rewound(element.partition()),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}
