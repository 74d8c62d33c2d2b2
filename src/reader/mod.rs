//! Reads a topic from one offset to another with `read_committed`, for `verify` and `redrive`.
//!
//! The end of a partition is an offset, never a count: offsets have gaps (transaction markers,
//! aborted records, compaction). A partition is read to its end when a record at or beyond that
//! end arrives, or when Kafka reports that no stable record is left; so the range must be stable
//! first ([`Reader::await_stable`]).

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::config::Kafka;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::error::kafka_error;
use crate::kafka::settings::Clients;
use crate::progress::Progress;

/// For one request to the brokers.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Reading fails when no record arrives for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For open transactions to end; the brokers end those of a dead worker after 40 s by default.
const STABLE_TIMEOUT: Duration = Duration::from_secs(150);
/// Unlike a worker, a reader never seeks: a large prefetch is worth its memory.
const PREFETCH: [(&str, &str); 2] =
    [("queued.min.messages", "20000"), ("queued.max.messages.kbytes", "32768")];

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;
/// Offsets to read, by partition.
pub type Ranges = BTreeMap<i32, Range<i64>>;

/// An end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last stable offset: below it every transaction has ended.
    Stable,
    /// The high watermark: open transactions included.
    Latest,
}

/// Reads; never joins the group and commits nothing.
pub struct Reader {
    stable: BaseConsumer<ReaderContext>,
    latest: BaseConsumer<ReaderContext>,
    brokers: String,
}

impl Reader {
    /// # Errors
    /// `ErrorKind::Config` for properties that are refused.
    pub fn new(kafka: &Kafka) -> Result<Self> {
        let mut config = Clients::new(kafka)?.consumer;
        for (name, value) in PREFETCH {
            if !kafka.properties.contains_key(name) {
                config.set(name, value);
            }
        }
        config
            .set("enable.partition.eof", "true")
            // Records that are deleted meanwhile must not be skipped silently.
            .set("auto.offset.reset", "error")
            .remove("group.instance.id");
        // A follower may lag behind the end that the leader reports.
        config.remove("client.rack");
        let create = |config: &ClientConfig| {
            config
                .create_with_context(ReaderContext::default())
                .map_err(|error| kafka_error("no consumer can be created", error))
        };
        let stable = create(&config)?;
        let latest = create(config.set("isolation.level", "read_uncommitted"))?;
        Ok(Self { stable, latest, brokers: kafka.brokers.clone() })
    }

    /// The partitions of `topic`, which the configuration calls `field`.
    ///
    /// # Errors
    /// `ErrorKind::Kafka`: no broker answers, or there is no such topic; both name their field.
    pub fn partitions(&self, field: &'static str, topic: &str) -> Result<Vec<i32>> {
        let metadata = self.stable.fetch_metadata(Some(topic), TIMEOUT).map_err(|error| {
            // Takes the events in which librdkafka says why.
            while self.stable.poll(Duration::ZERO).is_some() {}
            let silent = Error::new(ErrorKind::Kafka, "no Kafka broker answers")
                .with_context("kafka.brokers", &self.brokers);
            match self.stable.context().last_error() {
                Some(reason) => silent.with_source(reason),
                None => silent.with_source(error),
            }
        })?;
        let unusable = |code: RDKafkaErrorCode| {
            Error::new(ErrorKind::Kafka, "a topic can't be used")
                .with_context("field", field)
                .with_context("value", topic)
                .with_source(code)
        };
        let missing = || unusable(RDKafkaErrorCode::UnknownTopicOrPartition);
        let found =
            metadata.topics().iter().find(|found| found.name() == topic).ok_or_else(missing)?;
        if let Some(error) = found.error() {
            return Err(unusable(error.into()));
        }
        if found.partitions().is_empty() {
            return Err(missing());
        }
        Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
    }

    /// From the log start to `end` of each partition.
    pub fn ranges(&self, topic: &str, partitions: &[i32], end: End) -> Result<Ranges> {
        let consumer = match end {
            End::Stable => &self.stable,
            End::Latest => &self.latest,
        };
        let range = |&partition: &i32| {
            let (low, high) =
                consumer.fetch_watermarks(topic, partition, TIMEOUT).map_err(|error| {
                    kafka_error("the offsets of a partition can't be read", error)
                        .with_context("topic", topic)
                        .with_context("partition", partition)
                })?;
            Ok((partition, low..high))
        };
        partitions.iter().map(range).collect()
    }

    /// The group's committed offsets of `topic`; partitions without one are absent.
    pub fn committed(&self, topic: &str, partitions: &[i32]) -> Result<Offsets> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(topic, partition);
        }
        let unknown = |error| kafka_error("the group's offsets can't be read", error);
        let found = self.stable.committed_offsets(list, TIMEOUT).map_err(unknown)?;
        let mut offsets = Offsets::new();
        for element in found.elements() {
            element.error().map_err(unknown)?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.insert(element.partition(), offset);
            }
        }
        Ok(offsets)
    }

    /// Waits until `ranges` are stable: until no transaction below their ends is open.
    pub fn await_stable(&self, topic: &str, ranges: &Ranges) -> Result<()> {
        let started = Instant::now();
        for (&partition, range) in ranges {
            loop {
                let stable = self.ranges(topic, &[partition], End::Stable)?;
                let reached = stable.get(&partition).map_or(0, |known| known.end);
                if reached >= range.end {
                    break;
                }
                if started.elapsed() > STABLE_TIMEOUT {
                    return Err(Error::new(ErrorKind::Kafka, "a transaction stays open")
                        .with_context("topic", topic)
                        .with_context("partition", partition)
                        .with_context("offset", reached));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// Calls `each` with every record of `ranges`, in the order of its partition, until `each`
    /// breaks.
    pub fn read_records(
        &self,
        topic: &str,
        ranges: &Ranges,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut left: Ranges =
            ranges.iter().filter(|(_, range)| !range.is_empty()).map(to_owned_range).collect();
        let mut list = TopicPartitionList::with_capacity(left.len());
        let unreadable =
            |error| kafka_error("a topic can't be read", error).with_context("topic", topic);
        for (&partition, range) in &left {
            list.add_partition_offset(topic, partition, Offset::Offset(range.start))
                .map_err(unreadable)?;
        }
        self.stable.assign(&list).map_err(unreadable)?;
        let total = left.values().map(|range| range.end.abs_diff(range.start)).sum();
        let progress = Progress::new(topic.to_owned(), "offsets", total);
        let mut last = Instant::now();
        let mut paused = TopicPartitionList::new();
        while !left.is_empty() {
            let message = match self.stable.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(range) = left.remove(&partition) {
                        progress.advance(range.end.abs_diff(range.start));
                    }
                    continue;
                }
                Some(Err(error)) if is_permanent(&error) => return Err(unreadable(error)),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the reader reports an error");
                    continue;
                }
                None if last.elapsed() > IDLE_TIMEOUT => {
                    return Err(Error::new(ErrorKind::Kafka, "no more records of a topic arrive")
                        .with_context("topic", topic)
                        .with_context("partitions", format_args!("{:?}", left.keys()))
                        .with_context("seconds", IDLE_TIMEOUT.as_secs()));
                }
                None => continue,
            };
            last = Instant::now();
            let Some(range) = left.get_mut(&message.partition()) else {
                continue;
            };
            let offset = message.offset();
            if offset < range.end {
                let passed = offset.saturating_add(1);
                progress.advance(passed.abs_diff(range.start));
                range.start = passed;
                if each(&message)?.is_break() {
                    break;
                }
            } else {
                progress.advance(range.end.abs_diff(range.start));
                range.start = range.end;
            }
            if range.is_empty() {
                left.remove(&message.partition());
                paused.add_partition(topic, message.partition());
                self.stable.pause(&paused).map_err(unreadable)?;
            }
        }
        progress.finish();
        // Otherwise they stay paused at the next assignment.
        self.stable.resume(&paused).map_err(unreadable)?;
        self.stable.unassign().map_err(unreadable)
    }
}

fn to_owned_range((partition, range): (&i32, &Range<i64>)) -> (i32, Range<i64>) {
    (*partition, range.clone())
}

/// Whether a consumer's error can't pass by itself.
pub fn is_permanent(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::Fatal
            )
        )
}

/// Keeps librdkafka's last connection error, which goes into the error that ends a command. Its log
/// shows with `FUSIONCAP_LOG=debug` only.
#[derive(Default)]
struct ReaderContext {
    last_error: Mutex<Option<String>>,
}

impl ReaderContext {
    fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }
}

impl ClientContext for ReaderContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, client = "reader", "kafka client error");
        *self.last_error.lock() = Some(reason.to_owned());
    }
}

impl ConsumerContext for ReaderContext {}
