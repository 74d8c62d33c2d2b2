//! What every stage holds: ownership, counts, metrics, and the way to end the worker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use opentelemetry::KeyValue;
use rdkafka::consumer::ConsumerGroupMetadata;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::error::Error;
use crate::telemetry::{Health, Instruments, Metrics, Profile};
use crate::worker::breaker::Breaker;
use crate::worker::deadlines::Slowest;
use crate::worker::exactly_once::assignment::Assignment;
use crate::worker::outcome::Origin;
use crate::worker::telemetry::semconv::Conventional;
use crate::worker::telemetry::spans::Spans;
use crate::worker::telemetry::step::{Side, Step, Tally};

/// Shared by the stages of one run.
#[derive(Debug)]
pub struct Shared {
    pub assignment: Assignment<ConsumerGroupMetadata>,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    profile: Option<Profile>,
    /// Makes the spans of references.
    pub spans: Spans,
    /// What a collector gets under the conventions' names.
    pub conventional: Conventional,
    pub tally: Tally,
    pub slowest: Slowest,
    /// Open while the object store is taken for down.
    pub breaker: Breaker,
    /// References polled and not yet committed or dropped.
    in_flight: AtomicUsize,
    failure: Mutex<Option<Error>>,
    /// Cancelled when the run has failed.
    failed: CancellationToken,
}

impl Shared {
    pub fn new(instruments: Instruments, kafka: &config::Kafka) -> Self {
        let Instruments { metrics, health, profile, tracer, meter } = instruments;
        Self {
            assignment: Assignment::default(),
            metrics,
            health,
            profile,
            spans: Spans::new(tracer, kafka),
            conventional: Conventional::new(meter, kafka),
            tally: Tally::default(),
            slowest: Slowest::default(),
            breaker: Breaker::default(),
            in_flight: AtomicUsize::new(0),
            failure: Mutex::new(None),
            failed: CancellationToken::new(),
        }
    }

    /// Whether this record's work still counts; every hand-over asks.
    pub fn is_current(&self, origin: &Origin) -> bool {
        self.assignment.is_current(origin.partition(), origin.epoch())
    }

    pub fn enter(&self, references: usize) {
        self.in_flight.fetch_add(references, Ordering::Relaxed);
    }

    pub fn leave(&self, references: usize) {
        self.in_flight.fetch_sub(references, Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Notes time that a step spent working.
    pub fn busy(&self, step: Step, since: Instant) {
        let elapsed = since.elapsed();
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        if let Some(total) = self.tally.busy_nanos.get(step as usize) {
            total.fetch_add(nanos, Ordering::Relaxed);
        }
        let attributes = [KeyValue::new("stage", step.name())];
        self.metrics.busy_seconds.add(elapsed.as_secs_f64(), &attributes);
        match (&self.profile, step) {
            (None, _) => {}
            (Some(profile), Step::Fetch) => profile.request(step.name(), since, elapsed),
            (Some(profile), _) => profile.span(step.name(), since, elapsed),
        }
    }

    /// Notes time that a step spent waiting for the step before it or behind it.
    pub fn waited(&self, step: Step, side: Side, since: Instant) {
        let attributes = [KeyValue::new("stage", step.name()), KeyValue::new("for", side.name())];
        self.metrics.waiting_seconds.add(since.elapsed().as_secs_f64(), &attributes);
    }

    /// Ends the run with `error`; the first one is kept.
    pub fn fail(&self, error: Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::error!(error = error.chain(), "the worker can't go on");
        failure.get_or_insert(error);
        self.health.set_failed();
        self.failed.cancel();
    }

    pub fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    pub fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
