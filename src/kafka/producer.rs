//! The producer, and the thread that serves what librdkafka tells about it: what became of each
//! record, and which connections were lost.
//!
//! A lost connection makes the end of a transaction doubtful: librdkafka asks again by itself and
//! then says that all went well, while the first request may still be on its way. It does not tell
//! the error callback of a connection that the other side has closed, but logs it, before it asks
//! again. [`Served::catch_up`] waits until everything that was logged has been heard.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use crate::kafka::log;

/// Pauses between polls, which do not wait themselves: rust-rdkafka spins through the last
/// millisecond of a poll.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// Events served in one turn.
const BURST: i32 = 16;

/// A producer whose events are served until it is dropped.
pub struct Served {
    producer: Arc<BaseProducer<Deliveries>>,
    serving: Arc<Serving>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Serving {
    /// Held while events are served.
    turn: Mutex<()>,
    /// A transaction is under way.
    busy: AtomicBool,
    stopped: AtomicBool,
}

impl Served {
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(Deliveries::default())?;
        let (producer, serving) = (Arc::new(producer), Arc::new(Serving::default()));
        let served = (Arc::clone(&producer), Arc::clone(&serving));
        let thread = std::thread::Builder::new()
            .name("producer".into())
            .spawn(move || served.1.serve(&served.0))
            .map_err(no_thread)?;
        Ok(Self { producer, serving, thread: Some(thread) })
    }

    /// Begins to note what becomes of a transaction's records.
    pub fn begin(&self) {
        self.context().begin();
        self.serving.busy.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// The transaction is over: hears everything that librdkafka has told so far.
    pub fn catch_up(&self) {
        let turn = self.serving.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Its records are delivered: what is left are events.
        let mut left = self.producer.in_flight_count();
        while left > 0 {
            self.producer.poll(Duration::ZERO);
            left -= 1;
        }
        drop(turn);
        self.serving.busy.store(false, Ordering::Relaxed);
    }

    /// Runs `call` on a thread of its own, which holds `token` meanwhile. None when it has not come
    /// back within `limit`: it is left behind with the producer, which goes when it does.
    pub fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        token: Arc<()>,
        call: impl FnOnce(&BaseProducer<Deliveries>) -> T + Send + 'static,
    ) -> KafkaResult<Option<T>> {
        let producer = Arc::clone(&self.producer);
        let (told, heard) = channel();
        std::thread::Builder::new()
            .name("producer call".into())
            .spawn(move || {
                let value = call(&producer);
                drop((producer, token));
                if told.send(value).is_err() {
                    tracing::info!("a kafka call that was left behind has come back");
                }
            })
            .map_err(no_thread)?;
        Ok(heard.recv_timeout(limit).ok())
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Deref for Served {
    type Target = BaseProducer<Deliveries>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.stopped.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It has panicked when this fails: then it serves no more either.
            let _ = thread.join();
        }
    }
}

impl Serving {
    fn serve(&self, producer: &BaseProducer<Deliveries>) {
        while !self.stopped.load(Ordering::Relaxed) {
            let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..producer.in_flight_count().clamp(1, BURST) {
                producer.poll(Duration::ZERO);
            }
            drop(turn);
            let busy = self.busy.load(Ordering::Relaxed);
            std::thread::park_timeout(if busy { BUSY_PAUSE } else { IDLE_PAUSE });
        }
    }
}

/// The system may have one later.
fn no_thread(error: std::io::Error) -> KafkaError {
    tracing::warn!(%error, "a thread can't be started");
    KafkaError::Global(RDKafkaErrorCode::CriticalSystemResource)
}

/// The producer's context: what became of its records and its connections.
#[derive(Debug, Default)]
pub struct Deliveries {
    failure: Mutex<Option<Failure>>,
    /// The records that were refused for their size, or that of their batch.
    too_large: Mutex<Vec<usize>>,
    /// Connections lost since the producer was built.
    disconnects: AtomicU64,
    /// What librdkafka said last about its connections.
    last_error: Mutex<Option<String>>,
}

/// Why the first record that was not delivered was not.
#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: String,
    /// Nobody has refused it: it could not be written for too long.
    pub is_late: bool,
}

impl Deliveries {
    fn begin(&self) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.too_large.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn too_large(&self) -> Vec<usize> {
        self.too_large.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }
}

/// Whether librdkafka logs the end of a connection that may have had requests under way. It leaves
/// out what repeats itself within 30 s, so one such line is enough to give a producer up.
fn is_disconnect(facility: &str, message: &str) -> bool {
    // Nothing is under way before there is a connection.
    let connecting = ["in state TRY_CONNECT", "in state CONNECT"];
    facility == "FAIL" && !connecting.iter().any(|state| message.contains(state))
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if is_disconnect(facility, message) {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
        }
        log::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        tracing::warn!(%error, reason, client = "producer", "kafka client error");
    }
}

impl ProducerContext for Deliveries {
    /// The record's place in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let Err((error, message)) = result else {
            return;
        };
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            self.too_large.lock().unwrap_or_else(PoisonError::into_inner).push(index);
        }
        let failure = Failure {
            reason: format!(
                "{error} (topic: {}, bytes: {})",
                message.topic(),
                message.payload_len()
            ),
            is_late: code == Some(RDKafkaErrorCode::MessageTimedOut),
        };
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_told_from_one_that_never_was() {
        let lost = "[thrd:TxnCoordinator]: TxnCoordinator: 127.0.0.1:9092: Disconnected (after \
                    25ms in state UP)";
        let refused = "[thrd:127.0.0.1:1/bootstrap]: 127.0.0.1:1/bootstrap: Connect to \
                       ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)";
        assert!(is_disconnect("FAIL", lost));
        assert!(is_disconnect("FAIL", "in words that nobody knows"));
        assert!(!is_disconnect("FAIL", refused));
        assert!(!is_disconnect("REQTMOUT", lost));
    }
}
