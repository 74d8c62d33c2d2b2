//! The transactional producer: one transaction at a time, and what its errors mean.
//!
//! Errors come in four kinds (librdkafka's INTRODUCTION.md, "Transactional error handling"):
//! retriable, where the same call is made again with the same arguments; abortable; fatal; and no
//! flag at all, which means fatal. Commit and abort stand apart: librdkafka has no KIP-890, so an
//! end of transaction whose outcome is unknown can still act on a *later* transaction of the same
//! producer. After any error of theirs, and after a transaction whose producer has lost a
//! connection (librdkafka then asks again by itself, and says that all went well), the producer is
//! replaced: `init_transactions` fences whatever the old one still has on the wire.
//!
//! A call that may block for ever is made on a thread of its own. One that does not come back is left
//! behind with its producer, whose successor fences it; if it ever does, nothing follows it.
//!
//! A topic that takes no batch of a given size refuses every record of the batch. So after such a
//! refusal one transaction is tried with each record alone in its batch: whatever is refused then
//! is too large itself.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::util::Timeout;

use crate::error::{Error, ErrorKind, Result};
use crate::kafka::fencing::Fencings;
use crate::kafka::producer::Served;
use crate::kafka::settings::{self, Clients};
use crate::kafka::watchdog::Watchdog;
use crate::retry::Policy;
use crate::telemetry::Health;
use crate::worker::exactly_once::Outcome;
use crate::worker::publish::records::Record;

/// For one call that may be made again.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two of the same call.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How far librdkafka may pass a timeout that it was given.
const CALL_MARGIN: Duration = Duration::from_secs(2);
/// Each holds a producer with its threads.
const MOST_LEFT_BEHIND: usize = 4;
/// A first producer that can't be built for so long ends the worker; later ones are waited for.
const FIRST_BUILD_LIMIT: Duration = Duration::from_secs(300);
/// Failures in a row, of transactions or of building a producer, after which the worker says that it
/// is not ready.
pub const WORRYING_FAILURES: u32 = 3;
/// How far a stuck call may outlive the transaction that the broker gives up.
const WATCHDOG_MARGIN: Duration = Duration::from_secs(30);

/// A transaction that was not committed, as far as is known.
#[derive(Debug)]
pub struct Failure {
    pub outcome: Outcome,
    pub error: Error,
}

impl Failure {
    fn unknown(error: Error) -> Self {
        Self { outcome: Outcome::Unknown, error }
    }

    /// The producer failed with `error` in a call that only `message` tells apart.
    fn fatal(message: &'static str, error: KafkaError) -> Self {
        Self::unknown(kafka_error(message, error))
    }
}

/// What an error of the transaction API asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Retriable,
    Abortable,
    Fatal,
}

/// Owns the producer; lives on the publisher's thread.
pub struct Transactor {
    config: ClientConfig,
    transactional_id: String,
    transaction_timeout: Duration,
    message_timeout: Duration,
    watchdog: Watchdog,
    health: Arc<Health>,
    fencings: Fencings,
    /// Shared with every call that was left behind.
    left_behind: Arc<()>,
    /// Each record in a batch of its own.
    alone: bool,
    too_large: Vec<usize>,
    /// When the last transaction's records were all acknowledged.
    delivered: Cell<Option<Instant>>,
    /// None while there is no usable one.
    producer: Option<Served>,
}

impl Transactor {
    /// Builds the first producer.
    ///
    /// # Errors
    /// `ErrorKind::Config` for settings that librdkafka refuses, `ErrorKind::Kafka` when the
    /// brokers grant no transactions.
    pub fn connect(
        clients: &Clients,
        health: &Arc<Health>,
        stop: impl Fn() -> bool,
    ) -> Result<Self> {
        let mut transactor = Self {
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
            fencings: Fencings::default(),
            left_behind: Arc::default(),
            alone: false,
            too_large: Vec::new(),
            delivered: Cell::default(),
            producer: None,
        };
        transactor.build_within(FIRST_BUILD_LIMIT, stop)?;
        Ok(transactor)
    }

    /// Drops the producer, if there is one, and builds a new one, which ends whatever the old one
    /// left open: for as long as it takes, since brokers that are away come back. Returns early,
    /// without a producer, when `stop` says so.
    pub fn replace(&mut self, stop: impl Fn() -> bool) -> Result<()> {
        self.close();
        self.build_within(Duration::MAX, stop)
    }

    fn build_within(&mut self, limit: Duration, stop: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        let policy = Policy::endless(Duration::from_millis(200), Duration::from_secs(5));
        let mut attempts = 0;
        for pause in policy.pauses() {
            if stop() {
                return Ok(());
            }
            self.fencings.check(&self.transactional_id)?;
            self.check_left_behind()?;
            attempts += 1;
            let error = match self.build() {
                Ok(producer) => {
                    self.producer = Some(producer);
                    tracing::info!(
                        transactional_id = self.transactional_id,
                        attempts,
                        "transactional producer built"
                    );
                    return Ok(());
                }
                Err(error) => error,
            };
            if is_hopeless(&error) || started.elapsed() > limit {
                return Err(kafka_error("no transactional producer could be built", error)
                    .with("kafka.transactional_id", &self.transactional_id));
            }
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fenced) {
                self.fencings.note();
            }
            tracing::warn!(%error, attempts, "the transactional producer will be built again");
            if attempts >= WORRYING_FAILURES {
                self.health.set_troubled("no transactional producer can be built");
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }

    fn build(&self) -> KafkaResult<Served> {
        let mut config = self.config.clone();
        if self.alone {
            config.set("batch.num.messages", "1");
        }
        let producer = Served::new(&config)?;
        let deadline = Instant::now() + self.transaction_timeout;
        self.again(deadline, "init_transactions", || producer.init_transactions(CALL_TIMEOUT))?;
        Ok(producer)
    }

    /// Drops the producer; what it has open is ended by its successor, or by the broker.
    pub fn close(&mut self) {
        if let Some(producer) = self.producer.take() {
            self.watchdog.watch("drop the producer", || drop(producer));
        }
    }

    /// One transaction: `records` and `offsets`, all or nothing.
    ///
    /// `offsets` must not be empty: an empty list would commit records without offsets.
    /// `still_owned` is asked once more right before the commit.
    pub fn run(
        &mut self,
        records: &[Record],
        offsets: &TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
        still_owned: impl Fn() -> bool,
    ) -> Result<Outcome, Failure> {
        if offsets.count() == 0 {
            return Err(Failure::unknown(Error::new(
                ErrorKind::Internal,
                "a transaction without offsets was refused",
            )));
        }
        let Some(producer) = self.producer.take() else {
            return Err(Failure::unknown(Error::new(ErrorKind::Kafka, "there is no producer")));
        };
        self.delivered.take();
        let began = Instant::now();
        let mut ended = self.attempt(&producer, records, offsets, group, still_owned);
        producer.catch_up();
        if producer.context().disconnects() > 0 {
            ended = doubtful(ended);
        }
        // The broker itself fences a producer whose transaction took too long.
        let is_fenced = producer.client().fatal_error().is_some_and(|(code, _)| {
            code == RDKafkaErrorCode::Fenced && began.elapsed() < self.transaction_timeout
        });
        if is_fenced {
            self.fencings.note();
        }
        let was_alone = self.alone;
        let too_large = producer.context().too_large();
        // Once more with each alone, or back to batches.
        self.alone = !too_large.is_empty() || (was_alone && ended.is_err());
        self.too_large = if was_alone { too_large } else { Vec::new() };
        let outcome = match &ended {
            Ok(outcome) => *outcome,
            Err(failure) => failure.outcome,
        };
        if outcome.keeps_producer() && self.alone == was_alone {
            self.producer = Some(producer);
        } else {
            self.watchdog.watch("drop the producer", || drop(producer));
        }
        ended
    }

    /// Which records of the last transaction are too large for their topics, if that is known.
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

    fn attempt(
        &self,
        producer: &Served,
        records: &[Record],
        offsets: &TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
        still_owned: impl Fn() -> bool,
    ) -> Result<Outcome, Failure> {
        let deadline = Instant::now() + self.transaction_timeout;
        producer.begin();
        self.watchdog
            .watch("begin_transaction", || producer.begin_transaction())
            .map_err(|error| Failure::fatal("a transaction can't begin", error))?;
        let failed = |error| self.failed(producer, error);
        self.send(producer, records, deadline).map_err(failed)?;
        self.send_offsets(producer, offsets, group, deadline)?;
        self.await_deliveries(producer).map_err(failed)?;
        self.delivered.set(Some(Instant::now()));
        // Asked before the commit, which would report it too, but with an unknown outcome.
        if let Some(failure) = producer.context().failure() {
            let error =
                Error::new(ErrorKind::Kafka, "a record was not delivered").because(failure.reason);
            if failure.is_late {
                // An abort would wait, without a bound, until its mark can be written.
                return Err(Failure::unknown(error));
            }
            return Err(self.abort(producer, error));
        }
        if !still_owned() {
            let error = Error::new(ErrorKind::Kafka, "a partition was lost before the commit");
            return Err(self.abort(producer, error));
        }
        self.watchdog
            .watch("commit_transaction", || producer.commit_transaction(Timeout::Never))
            .map_err(|error| Failure::fatal("the commit's outcome is unknown", error))?;
        Ok(Outcome::Committed)
    }

    /// Hands the records to librdkafka, which sends them in the background.
    fn send(&self, producer: &Served, records: &[Record], deadline: Instant) -> KafkaResult<()> {
        for (index, record) in records.iter().enumerate() {
            loop {
                let Err((error, _)) = producer.send(base_record(record, index)) else {
                    break;
                };
                let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                if !is_full || Instant::now() > deadline {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// librdkafka knows no timeout while it looks for the group's coordinator, and may wait for ever
    /// for one that has left the cluster (its issues 5456 and 5511).
    fn send_offsets(
        &self,
        producer: &Served,
        offsets: &TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let name = "send_offsets_to_transaction";
        let limit = CALL_TIMEOUT.min(self.transaction_timeout) + CALL_MARGIN;
        let came_back = self.again(deadline, name, || {
            let (offsets, group) = (offsets.clone(), Arc::clone(group));
            let called = producer.call(limit, Arc::clone(&self.left_behind), move |producer| {
                producer.send_offsets_to_transaction(&offsets, &group, CALL_TIMEOUT)
            });
            called?.transpose()
        });
        match came_back {
            Ok(Some(())) => Ok(()),
            Ok(None) => {
                let error = Error::new(ErrorKind::Kafka, "a kafka call did not come back")
                    .with("call", name)
                    .with("limit", format!("{limit:?}"));
                Err(Failure::unknown(error))
            }
            Err(error) => Err(self.failed(producer, error)),
        }
    }

    fn check_left_behind(&self) -> Result<()> {
        let left = Arc::strong_count(&self.left_behind) - 1;
        if left < MOST_LEFT_BEHIND {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Kafka, "kafka calls don't come back").with("calls", left))
    }

    /// Waits until every record is delivered or has failed. `flush` would do, but its poll competes
    /// with the producer's own thread for the deliveries, and sleeps for 100 ms when it loses.
    fn await_deliveries(&self, producer: &Served) -> KafkaResult<()> {
        let deadline = Instant::now() + self.message_timeout + CALL_TIMEOUT;
        while producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends a transaction whose call failed with `error`.
    fn failed(&self, producer: &Served, error: KafkaError) -> Failure {
        if classify(&error) == Fault::Fatal {
            return Failure::fatal("the producer failed", error);
        }
        self.abort(producer, kafka_error("the transaction failed", error))
    }

    fn abort(&self, producer: &Served, why: Error) -> Failure {
        let aborted =
            self.watchdog.watch("abort_transaction", || producer.abort_transaction(Timeout::Never));
        match aborted {
            Ok(()) => Failure { outcome: Outcome::Aborted, error: why },
            Err(error) => {
                tracing::warn!(%error, "the abort failed");
                Failure::unknown(why)
            }
        }
    }

    /// Makes a retriable call again, with the same arguments, until `deadline`.
    fn again<T>(
        &self,
        deadline: Instant,
        name: &'static str,
        call: impl Fn() -> KafkaResult<T>,
    ) -> KafkaResult<T> {
        let policy = Policy::endless(Duration::from_millis(50), LONGEST_PAUSE);
        let mut pauses = policy.pauses();
        loop {
            let error = match self.watchdog.watch(name, &call) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if classify(&error) != Fault::Retriable || Instant::now() > deadline {
                return Err(error);
            }
            tracing::debug!(%error, call = name, "a kafka call is made again");
            std::thread::sleep(pauses.next().unwrap_or(LONGEST_PAUSE));
        }
    }
}

/// What a transaction's end is worth when a connection was lost: the request may have been sent
/// twice.
fn doubtful(ended: Result<Outcome, Failure>) -> Result<Outcome, Failure> {
    match ended {
        Ok(_) => Ok(Outcome::CommittedLoosely),
        Err(failure) => Err(Failure { outcome: Outcome::Unknown, ..failure }),
    }
}

fn base_record(record: &Record, index: usize) -> BaseRecord<'_, [u8], [u8], usize> {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for (key, value) in &record.headers {
        headers = headers.insert(Header { key, value: Some(value.as_slice()) });
    }
    let base = BaseRecord::with_opaque_to(&record.topic, index)
        .payload(record.payload.as_slice())
        .headers(headers);
    match &record.key {
        Some(key) => base.key(key.as_slice()),
        None => base,
    }
}

fn classify(error: &KafkaError) -> Fault {
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => Fault::Fatal,
        KafkaError::Transaction(error) if error.txn_requires_abort() => Fault::Abortable,
        KafkaError::Transaction(error) if error.is_retriable() => Fault::Retriable,
        KafkaError::Transaction(_) => Fault::Fatal,
        // Producing and flushing carry no flags; a fatal state shows at the abort.
        KafkaError::MessageProduction(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::Fenced) => {
            Fault::Fatal
        }
        _ => Fault::Abortable,
    }
}

/// Building it again would end the same way.
fn is_hopeless(error: &KafkaError) -> bool {
    matches!(error, KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_))
        || matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::InvalidTransactionTimeout
                    | RDKafkaErrorCode::UnsupportedFeature
            )
        )
}

fn kafka_error(message: &'static str, error: KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => {
            settings::creation_error(error)
        }
        other => Error::new(ErrorKind::Kafka, message).because(other),
    }
}
