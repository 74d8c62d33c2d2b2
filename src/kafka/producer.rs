//! A producer and the thread that polls it for librdkafka's events: the delivery reports of its
//! records, and which of its connections were lost.
//!
//! A lost connection makes the end of a transaction doubtful: librdkafka repeats the request by
//! itself and then reports success, while the first request may still be on its way. It does not
//! report to the error callback that the other side has closed a connection, but logs it, before it
//! repeats the request. [`PolledProducer::drain_events`] waits until everything logged so far is
//! counted. `FAIL` lines of librdkafka's log therefore decide about producers, so a test holds the
//! version that they were read from.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use crate::kafka::log::forward_line;

/// Pauses between polls, which do not wait themselves: rust-rdkafka spins through the last
/// millisecond of a poll.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// Events taken in one turn of the poll loop.
const BURST: i32 = 16;

/// A producer that is polled on a thread of its own until it is dropped.
pub struct PolledProducer {
    producer: Arc<BaseProducer<ProducerEvents>>,
    poll_loop: Arc<PollLoop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct PollLoop {
    /// Held while events are taken.
    polling: Mutex<()>,
    /// A transaction is under way.
    is_busy: AtomicBool,
    is_stopped: AtomicBool,
}

impl PolledProducer {
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        let producer: BaseProducer<ProducerEvents> =
            config.create_with_context(ProducerEvents::default())?;
        let (producer, poll_loop) = (Arc::new(producer), Arc::new(PollLoop::default()));
        let (polled, its_loop) = (Arc::clone(&producer), Arc::clone(&poll_loop));
        let thread = std::thread::Builder::new()
            .name("producer".into())
            .spawn(move || its_loop.run(&polled))
            .map_err(thread_error)?;
        Ok(Self { producer, poll_loop, thread: Some(thread) })
    }

    /// Forgets earlier delivery reports and connection errors: a transaction begins.
    pub fn begin_events(&self) {
        self.context().clear();
        self.poll_loop.is_busy.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Takes every event that librdkafka has emitted so far: the transaction is over.
    pub fn drain_events(&self) {
        let polling = self.poll_loop.polling.lock();
        // Its records are delivered: the rest are events.
        let mut left = self.producer.in_flight_count();
        while left > 0 {
            self.producer.poll(Duration::ZERO);
            left -= 1;
        }
        drop(polling);
        self.poll_loop.is_busy.store(false, Ordering::Relaxed);
    }

    /// Runs `call` on a thread of its own, which holds `token` meanwhile. None when it has not
    /// returned within `limit`: it is abandoned, and the producer lives until it returns.
    pub fn call_within<T: Send + 'static>(
        &self,
        limit: Duration,
        token: Arc<()>,
        call: impl FnOnce(&BaseProducer<ProducerEvents>) -> T + Send + 'static,
    ) -> KafkaResult<Option<T>> {
        let producer = Arc::clone(&self.producer);
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("producer call".into())
            .spawn(move || {
                let value = call(&producer);
                drop((producer, token));
                if sender.send(value).is_err() {
                    tracing::info!("an abandoned kafka call returned");
                }
            })
            .map_err(thread_error)?;
        Ok(receiver.recv_timeout(limit).ok())
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Deref for PolledProducer {
    type Target = BaseProducer<ProducerEvents>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for PolledProducer {
    fn drop(&mut self) {
        self.poll_loop.is_stopped.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // Fails only if the thread has panicked: then it polls no more either.
            let _ = thread.join();
        }
    }
}

impl PollLoop {
    fn run(&self, producer: &BaseProducer<ProducerEvents>) {
        while !self.is_stopped.load(Ordering::Relaxed) {
            let polling = self.polling.lock();
            for _ in 0..producer.in_flight_count().clamp(1, BURST) {
                producer.poll(Duration::ZERO);
            }
            drop(polling);
            let is_busy = self.is_busy.load(Ordering::Relaxed);
            std::thread::park_timeout(if is_busy { BUSY_PAUSE } else { IDLE_PAUSE });
        }
    }
}

/// The system may grant a thread later.
fn thread_error(error: std::io::Error) -> KafkaError {
    tracing::warn!(%error, "can't start a thread");
    KafkaError::Global(RDKafkaErrorCode::CriticalSystemResource)
}

/// The producer's context: delivery reports and connection events.
#[derive(Debug, Default)]
pub struct ProducerEvents {
    failure: Mutex<Option<DeliveryFailure>>,
    /// Indices of the records that were refused for their size, or that of their batch.
    too_large: Mutex<Vec<usize>>,
    /// Connections lost since the producer was built.
    disconnects: AtomicU64,
    /// The last connection error of this transaction.
    last_error: Mutex<Option<String>>,
}

/// Why the first undelivered record was not delivered.
#[derive(Clone, Debug)]
pub struct DeliveryFailure {
    pub reason: String,
    /// No broker has refused it: it could not be written within `message.timeout.ms`.
    pub timed_out: bool,
}

impl ProducerEvents {
    fn clear(&self) {
        *self.failure.lock() = None;
        self.too_large.lock().clear();
        *self.last_error.lock() = None;
    }

    pub fn failure(&self) -> Option<DeliveryFailure> {
        self.failure.lock().clone()
    }

    pub fn too_large(&self) -> Vec<usize> {
        self.too_large.lock().clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    pub fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }
}

/// Whether a log line reports the end of a connection that may have had requests under way.
/// librdkafka suppresses repetitions within 30 s, so one such line is enough to replace a producer.
fn is_disconnect(facility: &str, message: &str) -> bool {
    // Nothing is under way before there is a connection.
    let connecting = ["in state TRY_CONNECT", "in state CONNECT"];
    facility == "FAIL" && !connecting.iter().any(|state| message.contains(state))
}

impl ClientContext for ProducerEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if is_disconnect(facility, message) {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
        }
        forward_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        *self.last_error.lock() = Some(reason.to_owned());
        tracing::warn!(%error, reason, client = "producer", "kafka client error");
    }
}

impl ProducerContext for ProducerEvents {
    /// The record's index in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let Err((error, message)) = result else {
            return;
        };
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            self.too_large.lock().push(index);
        }
        let failure = DeliveryFailure {
            reason: format!(
                "{error} (topic: {}, bytes: {})",
                message.topic(),
                message.payload_len()
            ),
            timed_out: code == Some(RDKafkaErrorCode::MessageTimedOut),
        };
        self.failure.lock().get_or_insert(failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_differs_from_one_that_never_was() {
        let lost = "[thrd:TxnCoordinator]: TxnCoordinator: 127.0.0.1:9092: Disconnected (after \
                    25ms in state UP)";
        let refused = "[thrd:127.0.0.1:1/bootstrap]: 127.0.0.1:1/bootstrap: Connect to \
                       ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)";
        assert!(is_disconnect("FAIL", lost));
        assert!(is_disconnect("FAIL", "in words that nobody knows"));
        assert!(!is_disconnect("FAIL", refused));
        assert!(!is_disconnect("REQTMOUT", lost));
    }

    /// Exactly-once delivery rests on log lines and on behaviour that librdkafka does not document.
    #[test]
    fn the_version_of_librdkafka_is_the_one_that_was_read() {
        let (_, version) = rdkafka::util::get_rdkafka_version();
        assert_eq!(
            version, "2.12.1",
            "librdkafka has changed. Read again before this version is accepted: \
             (1) rdkafka_broker.c, where rd_kafka_broker_set_error must log each lost connection \
             under FAIL with 'in state' and the old state, where rd_kafka_broker_fail must do so \
             before it purges the requests under way, and where rd_kafka_broker_conn_closed must \
             not silence it; \
             (2) rdkafka_txnmgr.c: the error flags of kafka/error.rs, the missing KIP-890, and \
             send_offsets_to_transaction's missing timeout (librdkafka issues 5456 and 5511). \
             Then run ambiguous, fences, refused_records and audit::interrupted of tests/worker."
        );
    }
}
