//! A transactional producer that runs one transaction at a time: records, and where a group consumes
//! them the offsets behind them, all or nothing. It knows nothing of what the records say.
//!
//! `error` sorts failures. Commit and abort stand apart: librdkafka has no KIP-890, so an end of
//! transaction whose outcome is unknown can still act on a *later* transaction of the same
//! producer. After any error of theirs, and after a transaction whose producer has lost a
//! connection (librdkafka then repeats the request by itself and reports success), the producer is
//! replaced: `init_transactions` fences every request of the old one that is still on its way.
//!
//! A call that may block for ever is made on a thread of its own. One that does not return is left
//! behind with its producer, whose successor fences it; if it ever returns, nothing follows it.
//!
//! A topic that refuses a batch for its size refuses every record of the batch. After such a
//! refusal the next transaction has one record per batch: a record that is refused then is too large
//! itself.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use rdkafka::util::Timeout;

use crate::error::{Error, ErrorKind, Result};
use crate::kafka::error::{ErrorClass, is_fencing, is_permanent, kafka_error};
use crate::kafka::fencing::{FencingLimit, Fencings};
use crate::kafka::outcome::TransactionOutcome;
use crate::kafka::producer::PolledProducer;
use crate::kafka::record::{ProducerRecord, produce_record};
use crate::kafka::settings::Clients;
use crate::kafka::watchdog::Watchdog;
use crate::retry::Policy;
use crate::telemetry::Health;

/// For one call that may be repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest pause between two repetitions.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How far librdkafka may exceed a timeout that it was given.
const CALL_MARGIN: Duration = Duration::from_secs(2);
/// Each holds a producer with its threads.
const MAX_LEFT_BEHIND: usize = 4;
/// How far a stuck call may outlive the transaction that the broker gives up.
const WATCHDOG_MARGIN: Duration = Duration::from_secs(30);
/// Failures in a row, of transactions or of building a producer, after which the process is not
/// ready.
pub const UNREADY_AFTER_FAILURES: u32 = 3;

/// Offsets to commit with a transaction's records.
#[derive(Clone, Copy)]
pub struct ConsumedOffsets<'o> {
    /// Not empty: librdkafka commits the records without offsets otherwise.
    pub offsets: &'o TopicPartitionList,
    /// The consumer group, as of the poll that returned the messages behind the offsets.
    pub group: &'o Arc<ConsumerGroupMetadata>,
    /// Whether the consumer still owns all of the partitions; asked right before the commit.
    pub still_owned: &'o dyn Fn() -> bool,
}

/// A transaction that was not committed, as far as is known.
#[derive(Debug)]
pub struct TransactionFailure {
    pub outcome: TransactionOutcome,
    /// Another producer has the transactional id, or the transaction was open for too long: the
    /// broker fences the producer in both cases.
    pub is_fenced: bool,
    pub error: Error,
}

impl TransactionFailure {
    fn new(outcome: TransactionOutcome, error: Error) -> Self {
        Self { outcome, is_fenced: false, error }
    }

    fn unknown(error: Error) -> Self {
        Self::new(TransactionOutcome::Unknown, error)
    }
}

/// Owns the producer; lives on one thread.
pub struct TransactionalProducer {
    config: ClientConfig,
    transactional_id: String,
    transaction_timeout: Duration,
    message_timeout: Duration,
    watchdog: Watchdog,
    health: Arc<Health>,
    fencings: Fencings,
    /// Shared with every abandoned call.
    left_behind: Arc<()>,
    one_record_per_batch: bool,
    too_large: Vec<usize>,
    /// When the last transaction's records were all acknowledged.
    delivered: Cell<Option<Instant>>,
    /// None while there is no usable one.
    producer: Option<PolledProducer>,
}

impl TransactionalProducer {
    /// Builds the first producer, for `limit` at most: earlier producers with the transactional id
    /// are fenced, and their open transactions are ended. Returns early, without a producer, once
    /// `stop` returns true.
    ///
    /// # Errors
    /// `ErrorKind::Config` for settings that librdkafka refuses, `ErrorKind::Kafka` when the
    /// brokers grant no transactions within `limit`, or that of `fencing`.
    pub fn connect(
        clients: &Clients,
        fencing: FencingLimit,
        health: &Arc<Health>,
        limit: Duration,
        stop: impl Fn() -> bool,
    ) -> Result<Self> {
        let mut producer = Self {
            config: clients.producer.clone(),
            transactional_id: clients.transactional_id.clone(),
            transaction_timeout: clients.timeouts.transaction,
            message_timeout: clients.timeouts.message,
            watchdog: Watchdog::start(
                clients.timeouts.transaction + WATCHDOG_MARGIN,
                clients.producer.get("bootstrap.servers").unwrap_or_default().to_owned(),
                Arc::clone(health),
            )?,
            health: Arc::clone(health),
            fencings: Fencings::new(fencing),
            left_behind: Arc::default(),
            one_record_per_batch: false,
            too_large: Vec::new(),
            delivered: Cell::default(),
            producer: None,
        };
        producer.replace(limit, stop)?;
        Ok(producer)
    }

    /// Drops the producer, if there is one, and builds a new one, which ends whatever the old one
    /// left open. Returns early, without a producer, once `stop` returns true.
    ///
    /// # Errors
    /// As [`Self::connect`]; also `ErrorKind::Kafka` when too many calls were abandoned.
    pub fn replace(&mut self, limit: Duration, stop: impl Fn() -> bool) -> Result<()> {
        self.close();
        let started = Instant::now();
        let policy = Policy::unlimited(Duration::from_millis(200), Duration::from_secs(5));
        let mut attempts = 0;
        for pause in policy.pauses() {
            if stop() {
                return Ok(());
            }
            self.fencings.check()?;
            self.check_left_behind()?;
            attempts += 1;
            let (error, reason) = match self.build() {
                Ok(producer) => {
                    self.producer = Some(producer);
                    tracing::info!(
                        transactional_id = self.transactional_id,
                        attempts,
                        "transactional producer built"
                    );
                    return Ok(());
                }
                Err(failed) => failed,
            };
            if error.rdkafka_error_code().is_some_and(is_fencing) {
                self.fencings.add();
                self.fencings.check()?;
            }
            if is_permanent(&error) || started.elapsed() > limit {
                let error = kafka_error("no transactional producer can be built", error)
                    .with_context("transactional.id", &self.transactional_id);
                return Err(with_connection_error(error, reason));
            }
            tracing::warn!(%error, attempts, "the transactional producer will be built again");
            if attempts >= UNREADY_AFTER_FAILURES {
                self.health.set_degraded("no transactional producer can be built");
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }

    /// The error comes with the last connection error, if there was one.
    fn build(&self) -> Result<PolledProducer, (KafkaError, Option<String>)> {
        let mut config = self.config.clone();
        if self.one_record_per_batch {
            config.set("batch.num.messages", "1");
        }
        let producer = PolledProducer::new(&config).map_err(|error| (error, None))?;
        let deadline = Instant::now() + self.transaction_timeout;
        self.retry_call(deadline, "init_transactions", || producer.init_transactions(CALL_TIMEOUT))
            .map_err(|error| (error, producer.context().last_error()))?;
        Ok(producer)
    }

    /// Drops the producer; its successor, or the broker, ends whatever it has open.
    pub fn close(&mut self) {
        if let Some(producer) = self.producer.take() {
            self.drop_producer(producer);
        }
    }

    fn drop_producer(&self, producer: PolledProducer) {
        self.watchdog.watch("drop the producer", || drop(producer));
    }

    /// One transaction: `records` and `consumed`, all or nothing.
    ///
    /// There is no producer afterwards ([`Self::is_ready`]) where the outcome is in doubt, or the
    /// next transaction needs another batch size.
    pub fn run<'r>(
        &mut self,
        records: impl IntoIterator<Item = ProducerRecord<'r>>,
        consumed: Option<ConsumedOffsets<'_>>,
    ) -> Result<TransactionOutcome, TransactionFailure> {
        if consumed.is_some_and(|consumed| consumed.offsets.count() == 0) {
            let error = Error::new(ErrorKind::Internal, "a transaction without offsets is refused");
            return Err(TransactionFailure::unknown(error));
        }
        let Some(producer) = self.producer.take() else {
            let error = Error::new(ErrorKind::Kafka, "there is no transactional producer");
            return Err(TransactionFailure::unknown(error));
        };
        self.delivered.take();
        let began = Instant::now();
        let mut result = self.run_on(&producer, records, consumed);
        producer.drain_events();
        if producer.context().disconnects() > 0 {
            result = in_doubt(result);
        }
        let is_fenced = producer.client().fatal_error().is_some_and(|(code, _)| is_fencing(code));
        // The broker itself fences a producer whose transaction took too long.
        if is_fenced && began.elapsed() < self.transaction_timeout {
            self.fencings.add();
        }
        let had_one_record_per_batch = self.one_record_per_batch;
        let too_large = producer.context().too_large();
        self.one_record_per_batch =
            !too_large.is_empty() || (had_one_record_per_batch && result.is_err());
        self.too_large = if had_one_record_per_batch { too_large } else { Vec::new() };
        if let Err(failure) = result {
            let error = with_connection_error(failure.error, producer.context().last_error());
            result = Err(TransactionFailure { is_fenced, error, ..failure });
        }
        let outcome = match &result {
            Ok(outcome) => *outcome,
            Err(failure) => failure.outcome,
        };
        if outcome.keeps_producer() && self.one_record_per_batch == had_one_record_per_batch {
            self.producer = Some(producer);
        } else {
            self.drop_producer(producer);
        }
        result
    }

    /// Indices of the last transaction's records that are too large for their topics, where that is
    /// known.
    pub fn too_large(&self) -> &[usize] {
        &self.too_large
    }

    /// When the records of the last transaction were all acknowledged, if they were.
    pub fn delivered(&self) -> Option<Instant> {
        self.delivered.get()
    }

    /// Whether there is a producer that can begin a transaction.
    pub fn is_ready(&self) -> bool {
        self.producer.is_some()
    }

    fn run_on<'r>(
        &self,
        producer: &PolledProducer,
        records: impl IntoIterator<Item = ProducerRecord<'r>>,
        consumed: Option<ConsumedOffsets<'_>>,
    ) -> Result<TransactionOutcome, TransactionFailure> {
        let deadline = Instant::now() + self.transaction_timeout;
        producer.begin_events();
        self.watchdog.watch("begin_transaction", || producer.begin_transaction()).map_err(
            |error| TransactionFailure::unknown(kafka_error("a transaction can't begin", error)),
        )?;
        let end = |error| self.end_failed(producer, error);
        send_records(producer, records, deadline).map_err(end)?;
        if let Some(consumed) = consumed {
            self.send_offsets(producer, consumed, deadline)?;
        }
        self.await_deliveries(producer).map_err(|error| {
            TransactionFailure::unknown(kafka_error("records were not delivered in time", error))
        })?;
        self.delivered.set(Some(Instant::now()));
        // Checked before the commit, which would report it too, but with an unknown outcome.
        if let Some(failure) = producer.context().failure() {
            let error = Error::new(ErrorKind::Kafka, "a record was not delivered")
                .with_source(failure.reason);
            return Err(self.abort(producer, error));
        }
        if consumed.is_some_and(|consumed| !(consumed.still_owned)()) {
            let error = Error::new(ErrorKind::Kafka, "a partition was lost before the commit");
            return Err(self.abort(producer, error));
        }
        self.watchdog
            .watch("commit_transaction", || producer.commit_transaction(Timeout::Never))
            .map_err(|error| {
            TransactionFailure::unknown(kafka_error("the commit's outcome is unknown", error))
        })?;
        Ok(TransactionOutcome::Committed)
    }

    /// librdkafka keeps no timeout while it looks for the group's coordinator, and may wait for ever
    /// for one that has left the cluster (its issues 5456 and 5511).
    fn send_offsets(
        &self,
        producer: &PolledProducer,
        consumed: ConsumedOffsets<'_>,
        deadline: Instant,
    ) -> Result<(), TransactionFailure> {
        let name = "send_offsets_to_transaction";
        let limit = CALL_TIMEOUT.min(self.transaction_timeout) + CALL_MARGIN;
        let returned = self.retry_call(deadline, name, || {
            let (offsets, group) = (consumed.offsets.clone(), Arc::clone(consumed.group));
            let called =
                producer.call_within(limit, Arc::clone(&self.left_behind), move |producer| {
                    producer.send_offsets_to_transaction(&offsets, &group, CALL_TIMEOUT)
                });
            called?.transpose()
        });
        match returned {
            Ok(Some(())) => Ok(()),
            Ok(None) => {
                let error = Error::new(ErrorKind::Kafka, "a kafka call did not return")
                    .with_context("call", name)
                    .with_context("limit", format!("{limit:?}"));
                Err(TransactionFailure::unknown(error))
            }
            Err(error) => Err(self.end_failed(producer, error)),
        }
    }

    fn check_left_behind(&self) -> Result<()> {
        let left = Arc::strong_count(&self.left_behind) - 1;
        if left < MAX_LEFT_BEHIND {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Kafka, "kafka calls don't return").with_context("calls", left))
    }

    /// Waits until every record is delivered or has failed. `flush` would do, but its poll competes
    /// with the poll loop for the delivery reports, and sleeps for 100 ms when it loses.
    fn await_deliveries(&self, producer: &PolledProducer) -> KafkaResult<()> {
        let deadline = Instant::now() + self.message_timeout + CALL_TIMEOUT;
        while producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends a transaction in which a call failed with `error`.
    fn end_failed(&self, producer: &PolledProducer, error: KafkaError) -> TransactionFailure {
        if ErrorClass::of(&error) == ErrorClass::Fatal {
            return TransactionFailure::unknown(kafka_error("the producer failed", error));
        }
        let error = kafka_error("the transaction failed", error);
        match self.await_deliveries(producer) {
            Ok(()) => self.abort(producer, error),
            Err(_) => TransactionFailure::unknown(error),
        }
    }

    /// An abort waits, without a bound, until its marker is written to the partitions of the
    /// records. If records could not be written, the next producer ends the transaction instead.
    fn abort(&self, producer: &PolledProducer, error: Error) -> TransactionFailure {
        if producer.context().failure().is_some_and(|failure| failure.timed_out) {
            return TransactionFailure::unknown(error);
        }
        let aborted =
            self.watchdog.watch("abort_transaction", || producer.abort_transaction(Timeout::Never));
        match aborted {
            Ok(()) => TransactionFailure::new(TransactionOutcome::Aborted, error),
            Err(failed) => {
                tracing::warn!(error = %failed, "the abort failed");
                TransactionFailure::unknown(error)
            }
        }
    }

    /// Repeats a retriable call, with the same arguments, until `deadline`.
    fn retry_call<T>(
        &self,
        deadline: Instant,
        name: &'static str,
        call: impl Fn() -> KafkaResult<T>,
    ) -> KafkaResult<T> {
        let policy = Policy::unlimited(Duration::from_millis(50), LONGEST_PAUSE);
        let mut pauses = policy.pauses();
        loop {
            let error = match self.watchdog.watch(name, &call) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if ErrorClass::of(&error) != ErrorClass::Retriable || Instant::now() > deadline {
                return Err(error);
            }
            tracing::debug!(%error, call = name, "a kafka call is repeated");
            std::thread::sleep(pauses.next().unwrap_or(LONGEST_PAUSE));
        }
    }
}

/// Hands the records to librdkafka, which sends them in the background; waits while its queue is
/// full.
fn send_records<'r>(
    producer: &PolledProducer,
    records: impl IntoIterator<Item = ProducerRecord<'r>>,
    deadline: Instant,
) -> KafkaResult<()> {
    for (index, record) in records.into_iter().enumerate() {
        while let Err(error) = produce_record(producer, &record, index) {
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !is_full || Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// The end of a transaction during which a connection was lost: its request may have been sent
/// twice.
fn in_doubt(
    result: Result<TransactionOutcome, TransactionFailure>,
) -> Result<TransactionOutcome, TransactionFailure> {
    match result {
        Ok(_) => Ok(TransactionOutcome::CommittedInDoubt),
        Err(failure) => Err(TransactionFailure { outcome: TransactionOutcome::Unknown, ..failure }),
    }
}

fn with_connection_error(error: Error, reason: Option<String>) -> Error {
    match reason {
        Some(reason) => error.with_context("last connection error", reason),
        None => error,
    }
}
