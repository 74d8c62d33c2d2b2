//! What every stage holds: ownership, counts, metrics, and the way to end the worker.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use rdkafka::consumer::ConsumerGroupMetadata;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::error::{Error, ErrorKind};
use crate::telemetry::{Health, Instruments, Metrics, Profile};
use crate::worker::assignment::Assignment;
use crate::worker::breaker::Breaker;
use crate::worker::conventional::Conventional;
use crate::worker::deadlines::Slowest;
use crate::worker::flow::Origin;
use crate::worker::spans::Spans;

/// The steps of the flow, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Consume,
    Fetch,
    Decode,
    Batch,
    Encode,
    Caption,
    Publish,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Work: the step before is slower.
    Input,
    /// Room: the step behind is slower.
    Output,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

impl Step {
    pub const ALL: [Step; 7] = [
        Self::Consume,
        Self::Fetch,
        Self::Decode,
        Self::Batch,
        Self::Encode,
        Self::Caption,
        Self::Publish,
    ];

    /// Stable name: it stands in metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Batch => "batch",
            Self::Encode => "encode",
            Self::Caption => "caption",
            Self::Publish => "publish",
        }
    }
}

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

/// What the run has done so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub messages: AtomicU64,
    pub captions: AtomicU64,
    pub dead_letters: AtomicU64,
    pub skipped: AtomicU64,
    pub transactions: AtomicU64,
    /// Messages whose offsets are committed.
    pub answered: AtomicU64,
    busy_nanos: [AtomicU64; Step::ALL.len()],
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

impl Tally {
    pub fn stages(&self) -> Vec<(&'static str, Duration)> {
        let times = self.busy_nanos.iter();
        let nanos = times.map(|total| Duration::from_nanos(total.load(Ordering::Relaxed)));
        Step::ALL.iter().map(|step| step.name()).zip(nanos).collect()
    }
}

/// Runs `work` on a thread of its own; an error or a panic ends the run. The receiver hears when
/// the thread is through.
pub fn spawn_thread(
    name: &'static str,
    shared: &Arc<Shared>,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<tokio::sync::oneshot::Receiver<()>, Error> {
    let (through, heard) = tokio::sync::oneshot::channel();
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fail(error),
                Err(_) => shared.fail(panicked(name)),
            }
            // Nobody waits any more when the run itself was dropped.
            let _ = through.send(());
        })
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "can't start a thread")
                .with("name", name)
                .because(error)
        })?;
    Ok(heard)
}

pub fn panicked(stage: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stage panicked").with("stage", stage)
}
