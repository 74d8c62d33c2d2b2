//! The transactional producer of a run: references and the markers of their letters, all or
//! nothing.
//!
//! Whatever goes wrong ends the run, after an abort where one is possible: the next run's
//! `init_transactions` settles what this one left, and the markers say what is done. Only calls
//! that librdkafka calls retriable are made again. How a transaction ends is known or the producer
//! is given up (see `worker/transaction`).

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use rdkafka::util::Timeout;

use crate::config::Kafka;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::headers;
use crate::kafka::producer::Served;
use crate::kafka::settings::{self, Clients};
use crate::redrive::rebuild::Rebuilt;
use crate::retry::Policy;

/// For one call that may be made again.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// For `init_transactions`, which waits for what an earlier run left to be ended.
const INIT_LIMIT: Duration = Duration::from_secs(120);

/// Whether all connections have held until a commit was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    Connected,
    /// The producer must not be used again.
    Disconnected,
}

/// Owns the producer.
pub struct Redriver {
    producer: Served,
    transactional_id: String,
    message_timeout: Duration,
}

impl Redriver {
    /// Takes over the transactional id: earlier runs are fenced, and what they left is settled.
    pub fn connect(kafka: &Kafka) -> Result<Self> {
        let clients = Clients::new(kafka)?;
        let transactional_id = format!("{}-redrive", kafka.group);
        if clients.transactional_id == transactional_id {
            return Err(Error::new(ErrorKind::Config, "a worker's id would be taken over")
                .with("field", "kafka.transactional_id")
                .with("value", &transactional_id)
                .with("allowed", "any other id"));
        }
        let mut config = clients.producer;
        config.set("transactional.id", &transactional_id);
        let producer = Served::new(&config).map_err(settings::creation_error)?;
        let redriver =
            Self { producer, transactional_id, message_timeout: clients.timeouts.message };
        redriver
            .again(INIT_LIMIT, || redriver.producer.init_transactions(CALL_TIMEOUT))
            .map_err(|error| redriver.failed("transactions are not to be had", error))?;
        Ok(redriver)
    }

    /// One transaction: the references of `batch` on `topic`, and the markers beside their letters.
    pub fn commit(&self, batch: &[Rebuilt], topic: &str) -> Result<Committed> {
        self.producer.begin();
        self.producer
            .begin_transaction()
            .map_err(|error| self.failed("a transaction can't begin", error))?;
        let sent = batch
            .iter()
            .try_for_each(|rebuilt| {
                let Rebuilt { partition, reference, place, marker, .. } = rebuilt;
                self.send(|| headers::produce(&self.producer, topic, *partition, reference))?;
                let beside = Some(place.partition);
                self.send(|| headers::produce(&self.producer, &place.topic, beside, marker))
            })
            .and_then(|()| self.await_deliveries());
        if let Err(error) = sent {
            return Err(self.abort(self.failed("the transaction failed", error)));
        }
        if let Some(failure) = self.producer.context().failure() {
            let error = self.told("a record was not delivered").because(failure.reason);
            return Err(self.abort(error));
        }
        self.producer
            .commit_transaction(Timeout::Never)
            .map_err(|error| self.failed("the commit's outcome is unknown: run it again", error))?;
        self.producer.catch_up();
        let held = self.producer.context().disconnects() == 0;
        Ok(if held { Committed::Connected } else { Committed::Disconnected })
    }

    /// Hands a record to librdkafka, waiting while its queue is full.
    fn send(&self, produce: impl Fn() -> KafkaResult<()>) -> KafkaResult<()> {
        let deadline = Instant::now() + self.message_timeout + CALL_TIMEOUT;
        loop {
            let Err(error) = produce() else {
                return Ok(());
            };
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !is_full || Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn await_deliveries(&self) -> KafkaResult<()> {
        let deadline = Instant::now() + self.message_timeout + CALL_TIMEOUT;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Aborts as far as that is possible. Whether another run has taken over may show only then: a
    /// transaction that the broker timed out fails in the same way at first.
    fn abort(&self, error: Error) -> Error {
        if let Err(failure) = self.producer.abort_transaction(CALL_TIMEOUT) {
            tracing::debug!(error = %failure, "the abort failed: the next run ends the transaction");
        }
        self.fenced().unwrap_or(error)
    }

    fn again(&self, limit: Duration, call: impl Fn() -> KafkaResult<()>) -> KafkaResult<()> {
        let started = Instant::now();
        let policy = Policy::endless(Duration::from_millis(50), Duration::from_secs(1));
        for pause in policy.pauses() {
            let Err(error) = call() else {
                return Ok(());
            };
            let is_retriable =
                matches!(&error, KafkaError::Transaction(failure) if failure.is_retriable());
            if !is_retriable || started.elapsed() > limit {
                return Err(error);
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }

    fn failed(&self, message: &'static str, error: KafkaError) -> Error {
        let is_fenced = error.rdkafka_error_code().is_some_and(is_fencing);
        match self.fenced() {
            Some(told) => told,
            None if is_fenced => self.taken_over(),
            None => self.told(message).because(error),
        }
    }

    /// With what librdkafka said last about its connections, if it said anything.
    fn told(&self, message: &'static str) -> Error {
        let error =
            Error::new(ErrorKind::Kafka, message).with("transactional.id", &self.transactional_id);
        match self.producer.context().last_error() {
            Some(reason) => error.with("last connection error", reason),
            None => error,
        }
    }

    /// Says so, if another run has taken over.
    fn fenced(&self) -> Option<Error> {
        let (code, _) = self.producer.client().fatal_error()?;
        is_fencing(code).then(|| self.taken_over())
    }

    fn taken_over(&self) -> Error {
        Error::new(ErrorKind::Kafka, "another redrive of this group has taken over")
            .with("transactional.id", &self.transactional_id)
    }
}

fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced)
}
