//! Commits finished work, on a thread of its own that owns the producer.
//!
//! A transaction holds the captions, the dead letters and the offsets of the same messages. It
//! begins only when all of that is there, so that it is open for milliseconds. `exactly_once` decides
//! which work may be committed, and which is stale afterwards.

pub mod records;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::fencing::FencingLimit;
use crate::kafka::outcome::TransactionOutcome;
use crate::kafka::settings::Clients;
use crate::kafka::transaction::{
    ConsumedOffsets, TransactionFailure, TransactionalProducer, UNREADY_AFTER_FAILURES,
};
use crate::retry::Policy;
use crate::telemetry::Health;
use crate::worker::context::Context;
use crate::worker::exactly_once::ledger::{FinishedPrefix, MessageId};
use crate::worker::exactly_once::{self, Protocol, Ready};
use crate::worker::outbox::event::PublisherEvent;
use crate::worker::outcome::Outcome;
use crate::worker::ownership::Ownership;
use crate::worker::publish::records::{Record, RecordWriter};
use crate::worker::run::Run;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::spans::TransactionTiming;
use crate::worker::telemetry::stage::{Stage, WaitFor};

/// Time to build the first producer.
const CONNECT_LIMIT: Duration = Duration::from_secs(300);
/// Fencings within five minutes: more than a successor causes.
const MAX_FENCINGS: usize = 10;

/// The worker's producer, which is not ready where `stop` came first.
pub fn connect_producer(
    clients: &Clients,
    health: &Arc<Health>,
    stop: impl Fn() -> bool,
) -> Result<TransactionalProducer> {
    let message = "another running worker has the same transactional id";
    let error = Error::new(ErrorKind::Kafka, message)
        .with_context("field", "kafka.transactional_id")
        .with_context("value", &clients.transactional_id)
        .with_context("allowed", "an id that no other running worker has");
    let fencing = FencingLimit { fencings: MAX_FENCINGS, error };
    TransactionalProducer::connect(clients, fencing, health, CONNECT_LIMIT, stop)
}

pub struct Publisher {
    inbox: Receiver<PublisherEvent>,
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    producer: TransactionalProducer,
    writer: RecordWriter,
    input_topic: Arc<str>,
    shutdown: CancellationToken,
    protocol: Protocol<Outcome>,
    schedule: CommitSchedule,
    /// Transactions that failed in a row.
    failures: u32,
}

/// When the next transaction may begin: each costs the brokers the same, however many records it
/// holds.
struct CommitSchedule {
    interval: Duration,
    /// Number of finished records that do not wait for the interval.
    enough: usize,
    next: Instant,
    /// Records, and messages without records, that have finished since the last transaction.
    finished: usize,
}

impl CommitSchedule {
    fn new(config: &Config) -> Self {
        Self {
            interval: Duration::from_millis(config.kafka.commit_interval_ms),
            enough: config.limits.max_in_flight / 4,
            next: Instant::now(),
            finished: 0,
        }
    }

    /// How long to wait for more; None when there is nothing to commit, or no need to wait.
    fn wait(&self) -> Option<Duration> {
        let wait = self.next.saturating_duration_since(Instant::now());
        (self.finished > 0 && self.finished < self.enough && !wait.is_zero()).then_some(wait)
    }

    fn began(&mut self) {
        self.finished = 0;
        self.next = Instant::now() + self.interval;
    }
}

/// The content of a transaction.
struct Commit {
    /// The finished prefixes; their outcomes are `records`.
    finished: Vec<FinishedPrefix<Outcome>>,
    records: Vec<Record>,
    offsets: TopicPartitionList,
    group: Arc<ConsumerGroupMetadata>,
}

impl Commit {
    fn messages(&self) -> usize {
        self.finished.iter().map(FinishedPrefix::messages).sum()
    }
}

impl Publisher {
    pub fn new(
        config: &Config,
        context: &Context,
        inbox: Receiver<PublisherEvent>,
        producer: TransactionalProducer,
        writer: RecordWriter,
        shutdown: CancellationToken,
    ) -> Self {
        let Context { ownership, run, observer, .. } = context.clone();
        Self {
            inbox,
            ownership,
            run,
            observer,
            producer,
            writer,
            input_topic: config.kafka.input_topic.as_str().into(),
            shutdown,
            protocol: Protocol::default(),
            schedule: CommitSchedule::new(config),
            failures: 0,
        }
    }

    /// Runs until `PublisherEvent::Close` or until the run fails.
    pub fn run(mut self) -> Result<()> {
        let mut closing = false;
        while !closing && !self.run.has_failed() {
            let idle = Instant::now();
            let event = match self.schedule.wait() {
                Some(wait) => self.inbox.recv_timeout(wait),
                None => self.inbox.recv().map_err(RecvTimeoutError::from),
            };
            self.observer.waited(Stage::Publish, WaitFor::Upstream, idle);
            match event {
                Ok(event) => closing = self.apply(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while !closing && let Ok(next) = self.inbox.try_recv() {
                closing = self.apply(next)?;
            }
            if !self.run.has_failed() && (closing || self.schedule.wait().is_none()) {
                self.publish()?;
            }
        }
        self.producer.close();
        Ok(())
    }

    /// Returns whether this was the last event.
    fn apply(&mut self, event: PublisherEvent) -> Result<bool> {
        match event {
            PublisherEvent::Tracked { message, records, guard } => {
                if records == 0 {
                    self.schedule.finished += 1;
                }
                self.protocol.track(&self.ownership, message, records, guard);
            }
            PublisherEvent::Finished(outcomes) => {
                self.schedule.finished += outcomes.len();
                for outcome in outcomes {
                    let (message, index) = (outcome.origin.message_id(), outcome.origin.index);
                    if !self.protocol.finish(message, index, outcome) {
                        tracing::debug!(?message, index, "dropped a stale outcome");
                    }
                }
            }
            PublisherEvent::Revoked { partitions, done } => {
                if !self.run.has_failed() {
                    self.publish()?;
                }
                self.protocol.forget(&partitions);
                // The consumer may have stopped waiting.
                let _ = done.send(());
            }
            PublisherEvent::Lost { partitions } => self.protocol.forget(&partitions),
            PublisherEvent::Close => return Ok(true),
        }
        Ok(false)
    }

    /// Commits every finished prefix, if there is one.
    fn publish(&mut self) -> Result<()> {
        let Some(commit) = self.prepare()? else {
            return Ok(());
        };
        if !self.producer.is_ready() {
            // A connection broke during the last commit, or its records were sent one by one:
            // nothing is lost, nothing to rewind.
            tracing::info!("replacing the transactional producer");
            self.rebuild()?;
        }
        let started = Instant::now();
        self.schedule.began();
        let consumed = ConsumedOffsets {
            offsets: &commit.offsets,
            group: &commit.group,
            still_owned: &|| exactly_once::is_owned(&commit.finished, &self.ownership),
        };
        let records = commit.records.iter().map(Record::to_produce);
        let ended = self.producer.run(records, Some(consumed));
        self.observer.busy(Stage::Publish, started);
        match ended {
            Ok(_) => {
                self.failures = 0;
                self.run.health.set_recovered();
                for prefix in &commit.finished {
                    self.writer.committed(prefix.partition, prefix.next_offset);
                }
                self.observer.max_durations.commit(started.elapsed());
                self.account(&commit, started);
                self.end_spans(commit, started, None);
                Ok(())
            }
            Err(failure) => {
                for &record in self.producer.too_large() {
                    if let Some(record) = commit.records.get(record) {
                        self.writer.refuse(record);
                    }
                }
                self.end_spans(commit, started, Some(&failure.error));
                self.recover(failure)
            }
        }
    }

    fn end_spans(&self, commit: Commit, began: Instant, failed: Option<&Error>) {
        let messages = commit.messages();
        let (delivered, ended) = (self.producer.delivered(), Instant::now());
        let kind = failed.map(Error::kind);
        let topics = commit.records.chunk_by(|left, right| left.topic == right.topic);
        let counts = topics.filter_map(|topic| Some((&topic.first()?.topic, topic.len())));
        self.observer.semconv.ended(counts, ended - began, kind);
        let spans = commit.records.into_iter().map(|record| record.spans);
        self.observer.spans.ended(
            spans,
            messages,
            TransactionTiming { began, delivered, ended, failed },
        );
    }

    /// Takes what is finished and still owned, and makes records of it.
    fn prepare(&mut self) -> Result<Option<Commit>> {
        let Some(Ready { mut finished, group }) = self.protocol.prepare(&self.ownership) else {
            return Ok(None);
        };
        let Some(group) = group else {
            return Err(Error::new(ErrorKind::Internal, "work was finished without a group"));
        };
        let mut offsets = TopicPartitionList::with_capacity(finished.len());
        let mut records = Vec::new();
        for prefix in &mut finished {
            let offset = Offset::Offset(prefix.next_offset);
            offsets.add_partition_offset(&self.input_topic, prefix.partition, offset).map_err(
                |error| {
                    Error::new(ErrorKind::Internal, "an offset can't be committed")
                        .with_source(error)
                },
            )?;
            for outcome in std::mem::take(&mut prefix.outcomes) {
                records.push(self.writer.record(outcome)?);
            }
        }
        Ok(Some(Commit { finished, records, offsets, group }))
    }

    /// Counts and logs a committed transaction.
    fn account(&self, commit: &Commit, started: Instant) {
        let mut codes: BTreeMap<&'static str, u64> = BTreeMap::new();
        for kind in commit.records.iter().filter_map(|record| record.code) {
            *codes.entry(kind.code()).or_default() += 1;
        }
        let dead_letters: u64 = codes.values().sum();
        let captions = commit.records.len() as u64 - dead_letters;
        let Observer { tally, metrics, .. } = &*self.observer;
        tally.captions.fetch_add(captions, Ordering::Relaxed);
        tally.dead_letters.fetch_add(dead_letters, Ordering::Relaxed);
        tally.transactions.fetch_add(1, Ordering::Relaxed);
        tally.answered.fetch_add(commit.messages() as u64, Ordering::Relaxed);
        metrics.captions.add(captions, &[]);
        for (code, count) in codes {
            metrics.dead_letters.add(count, &[KeyValue::new("code", code)]);
        }
        metrics.transactions.add(1, &[KeyValue::new("outcome", "committed")]);
        for record in &commit.records {
            self.account_record(record);
        }
        let next = |prefix: &FinishedPrefix<Outcome>| (prefix.partition, prefix.next_offset);
        let offsets: BTreeMap<i32, i64> = commit.finished.iter().map(next).collect();
        tracing::info!(
            captions,
            dead_letters,
            ?offsets,
            elapsed_ms = started.elapsed().as_millis(),
            "transaction committed"
        );
    }

    fn account_record(&self, record: &Record) {
        let took = record.polled.elapsed();
        self.observer.metrics.latency_seconds.record(took.as_secs_f64(), &[]);
        self.observer.semconv.processed(took, record.code);
        let Some(code) = record.code else {
            return;
        };
        let _in_trace = record.in_trace();
        let MessageId { partition, offset, .. } = record.message;
        let (index, code) = (record.index, code.code());
        tracing::info!(partition, offset, index, code, "dead letter committed");
    }

    /// Makes everything in flight stale, brings the transaction to its end, and allows the rewind.
    /// Retries without a limit: a full or read-only topic gets repaired, and brokers come back.
    fn recover(&mut self, failure: TransactionFailure) -> Result<()> {
        self.failures = self.failures.saturating_add(1);
        self.protocol.end(&self.ownership, failure.outcome);
        let TransactionFailure { outcome, error, .. } = failure;
        let outcome = if outcome == TransactionOutcome::Aborted { "aborted" } else { "unknown" };
        self.observer.metrics.transactions.add(1, &[KeyValue::new("outcome", outcome)]);
        tracing::warn!(
            outcome,
            error = error.chain(),
            failures = self.failures,
            "transaction failed"
        );
        if !self.producer.is_ready() {
            self.rebuild()?;
        }
        // A call that waited for brokers has come back.
        self.run.health.set_recovered();
        if self.failures >= UNREADY_AFTER_FAILURES {
            self.run.health.set_degraded("transactions fail");
        }
        self.pause();
        self.protocol.allow_rewind(&self.ownership);
        Ok(())
    }

    fn rebuild(&mut self) -> Result<()> {
        let (run, shutdown) = (&self.run, &self.shutdown);
        let stop = || run.has_failed() || shutdown.is_cancelled();
        // Without a limit: brokers that are away come back.
        self.producer.replace(Duration::MAX, stop)
    }

    /// Longer after each failure in a row.
    fn pause(&self) {
        let policy = Policy::unlimited(Duration::from_millis(50), Duration::from_secs(5));
        let nth = usize::try_from(self.failures.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(pause) = policy.pauses().nth(nth) {
            std::thread::sleep(pause);
        }
    }
}
