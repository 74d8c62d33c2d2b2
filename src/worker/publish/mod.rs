//! Commits what is finished, on a thread of its own that owns the producer.
//!
//! A transaction holds the captions, the dead letters and the offsets of the same messages. It
//! begins only when all of that is there, so that it is open for milliseconds. What may be
//! committed, and what becomes of it afterwards, `protocol` decides.

pub mod event;
mod fencing;
pub mod records;
pub mod transaction;
mod watchdog;

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
use crate::retry::Policy;
use crate::worker::context::Shared;
use crate::worker::exactly_once::ledger::Finished;
use crate::worker::exactly_once::{self, Outcome as Ending, Protocol, Ready};
use crate::worker::outcome::Outcome;
use crate::worker::publish::event::Event;
use crate::worker::publish::records::{Record, RecordWriter};
use crate::worker::publish::transaction::{Failure, Transactor, WORRYING_FAILURES};
use crate::worker::telemetry::spans::Sent;
use crate::worker::telemetry::step::{Side, Step};

pub struct Publisher {
    pub inbox: Receiver<Event>,
    pub shared: Arc<Shared>,
    pub transactor: Transactor,
    pub writer: RecordWriter,
    pub input_topic: Arc<str>,
    pub shutdown: CancellationToken,
    protocol: Protocol<Outcome>,
    pace: Pace,
    /// Transactions that failed in a row.
    failures: u32,
}

/// When the next transaction may begin: each costs the brokers the same, whatever it holds.
struct Pace {
    interval: Duration,
    /// As many finished records do not wait.
    enough: usize,
    next: Instant,
    /// Records, and messages without any, that have finished since the last one.
    finished: usize,
}

impl Pace {
    fn new(config: &Config) -> Self {
        Self {
            interval: Duration::from_millis(config.kafka.commit_interval_ms),
            enough: config.limits.max_in_flight / 4,
            next: Instant::now(),
            finished: 0,
        }
    }

    /// How long to wait for more, if there is anything to wait with.
    fn wait(&self) -> Option<Duration> {
        let wait = self.next.saturating_duration_since(Instant::now());
        (self.finished > 0 && self.finished < self.enough && !wait.is_zero()).then_some(wait)
    }

    fn began(&mut self) {
        self.finished = 0;
        self.next = Instant::now() + self.interval;
    }
}

/// A transaction's contents.
struct Commit {
    finished: Vec<Finished<Instant>>,
    records: Vec<Record>,
    offsets: TopicPartitionList,
    group: Arc<ConsumerGroupMetadata>,
}

impl Publisher {
    pub fn new(
        config: &Config,
        inbox: Receiver<Event>,
        shared: Arc<Shared>,
        transactor: Transactor,
        writer: RecordWriter,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inbox,
            shared,
            transactor,
            writer,
            input_topic: config.kafka.input_topic.as_str().into(),
            shutdown,
            protocol: Protocol::default(),
            pace: Pace::new(config),
            failures: 0,
        }
    }

    /// Runs until it is told to close or the run fails.
    pub fn run(mut self) -> Result<()> {
        let mut closing = false;
        while !closing && !self.shared.has_failed() {
            let idle = Instant::now();
            let event = match self.pace.wait() {
                Some(wait) => self.inbox.recv_timeout(wait),
                None => self.inbox.recv().map_err(RecvTimeoutError::from),
            };
            self.shared.waited(Step::Publish, Side::Input, idle);
            match event {
                Ok(event) => closing = self.apply(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while !closing && let Ok(next) = self.inbox.try_recv() {
                closing = self.apply(next)?;
            }
            if !self.shared.has_failed() && (closing || self.pace.wait().is_none()) {
                self.publish()?;
            }
        }
        self.transactor.close();
        Ok(())
    }

    /// Returns whether this was the last event.
    fn apply(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Tracked { partition, epoch, offset, records } => {
                let assignment = &self.shared.assignment;
                let message = (partition, epoch, offset);
                if records == 0 {
                    self.pace.finished += 1;
                }
                self.shared.leave(self.protocol.track(assignment, message, records));
            }
            Event::Finished(outcomes) => {
                self.pace.finished += outcomes.len();
                for outcome in outcomes {
                    let origin = outcome.origin();
                    let message = (origin.partition(), origin.epoch(), origin.offset());
                    let index = origin.index;
                    if !self.protocol.finish(message, index, outcome) {
                        tracing::debug!(?message, index, "dropped a stale outcome");
                    }
                }
            }
            Event::Revoked { partitions, done } => {
                if !self.shared.has_failed() {
                    self.publish()?;
                }
                self.forget(&partitions);
                // The consumer may have stopped waiting.
                let _ = done.send(());
            }
            Event::Lost { partitions } => self.forget(&partitions),
            Event::Close => return Ok(true),
        }
        Ok(false)
    }

    fn forget(&mut self, partitions: &[i32]) {
        self.shared.leave(self.protocol.forget(partitions));
    }

    /// Commits every finished prefix, if there is one.
    fn publish(&mut self) -> Result<()> {
        let Some(commit) = self.prepare()? else {
            return Ok(());
        };
        if !self.transactor.is_ready() {
            // A connection broke during the last commit, or its records were sent one by one:
            // nothing is lost, nothing to rewind.
            tracing::info!("replacing the transactional producer");
            self.rebuild()?;
        }
        let started = Instant::now();
        self.pace.began();
        let assignment = &self.shared.assignment;
        let still_owned = || exactly_once::is_owned(&commit.finished, assignment);
        let ended =
            self.transactor.run(&commit.records, &commit.offsets, &commit.group, still_owned);
        self.shared.busy(Step::Publish, started);
        for finished in &commit.finished {
            self.shared.leave(finished.references);
        }
        match ended {
            Ok(_) => {
                self.failures = 0;
                self.shared.health.set_recovered();
                for finished in &commit.finished {
                    self.writer.committed(finished.partition, finished.next_offset);
                }
                self.shared.slowest.commit(started.elapsed());
                self.account(&commit, started);
                self.end_spans(commit, started, None);
                Ok(())
            }
            Err(failure) => {
                for &record in self.transactor.too_large() {
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
        let messages = commit.finished.iter().map(|finished| finished.messages).sum();
        let (delivered, ended) = (self.transactor.delivered(), Instant::now());
        let kind = failed.map(Error::kind);
        let topics = commit.records.chunk_by(|left, right| left.topic == right.topic);
        let counts = topics.filter_map(|topic| Some((&topic.first()?.topic, topic.len())));
        self.shared.conventional.ended(counts, ended - began, kind);
        let spans = commit.records.into_iter().map(|record| record.spans);
        self.shared.spans.ended(spans, messages, Sent { began, delivered, ended, failed });
    }

    /// Takes what is finished and still owned, and makes records of it.
    fn prepare(&mut self) -> Result<Option<Commit>> {
        let (ready, dropped) = self.protocol.prepare(&self.shared.assignment);
        self.shared.leave(dropped);
        let Some(Ready { finished: taken, group }) = ready else {
            return Ok(None);
        };
        let Some(group) = group else {
            return Err(Error::new(ErrorKind::Internal, "work was finished without a group"));
        };
        let mut commit = Commit {
            finished: Vec::with_capacity(taken.len()),
            records: Vec::new(),
            offsets: TopicPartitionList::with_capacity(taken.len()),
            group,
        };
        for part in taken {
            let offset = Offset::Offset(part.next_offset);
            commit
                .offsets
                .add_partition_offset(&self.input_topic, part.partition, offset)
                .map_err(|error| {
                    Error::new(ErrorKind::Internal, "an offset can't be committed").because(error)
                })?;
            let mut polled = Vec::with_capacity(part.outcomes.len());
            for outcome in part.outcomes {
                polled.push(outcome.origin().message.polled);
                commit.records.push(self.writer.record(outcome)?);
            }
            commit.finished.push(Finished {
                partition: part.partition,
                epoch: part.epoch,
                next_offset: part.next_offset,
                messages: part.messages,
                references: part.references,
                outcomes: polled,
            });
        }
        Ok(Some(commit))
    }

    fn account(&self, commit: &Commit, started: Instant) {
        let mut codes: BTreeMap<&'static str, u64> = BTreeMap::new();
        for kind in commit.records.iter().filter_map(|record| record.code) {
            *codes.entry(kind.code()).or_default() += 1;
        }
        let dead_letters: u64 = codes.values().sum();
        let captions = commit.records.len() as u64 - dead_letters;
        let Shared { tally, metrics, conventional, .. } = &*self.shared;
        tally.captions.fetch_add(captions, Ordering::Relaxed);
        tally.dead_letters.fetch_add(dead_letters, Ordering::Relaxed);
        tally.transactions.fetch_add(1, Ordering::Relaxed);
        let messages: usize = commit.finished.iter().map(|finished| finished.messages).sum();
        tally.answered.fetch_add(messages as u64, Ordering::Relaxed);
        metrics.captions.add(captions, &[]);
        for (code, count) in codes {
            metrics.dead_letters.add(count, &[KeyValue::new("code", code)]);
        }
        metrics.transactions.add(1, &[KeyValue::new("outcome", "committed")]);
        let polled = commit.finished.iter().flat_map(|finished| &finished.outcomes);
        for (polled, record) in polled.zip(&commit.records) {
            let took = polled.elapsed();
            metrics.latency(took.as_secs_f64(), record.spans.process());
            conventional.processed(took, record.code);
            if let Some(code) = record.code {
                let _in_trace = record.in_trace();
                let (partition, offset, index) = record.source;
                tracing::info!(
                    partition,
                    offset,
                    index,
                    code = code.code(),
                    "dead letter committed"
                );
            }
        }
        let offsets: BTreeMap<i32, i64> = commit
            .finished
            .iter()
            .map(|finished| (finished.partition, finished.next_offset))
            .collect();
        tracing::info!(
            captions,
            dead_letters,
            ?offsets,
            elapsed_ms = started.elapsed().as_millis(),
            "transaction committed"
        );
    }

    /// Makes everything in flight stale, sees the transaction to its end, allows the rewind. Goes
    /// on for as long as it takes: a topic that is full, read-only or short of replicas, and
    /// brokers that are away, are mended by others.
    fn recover(&mut self, failure: Failure) -> Result<()> {
        self.failures = self.failures.saturating_add(1);
        self.shared.leave(self.protocol.end(&self.shared.assignment, failure.outcome));
        let Failure { outcome, error } = failure;
        let outcome = if outcome == Ending::Aborted { "aborted" } else { "fatal" };
        self.shared.metrics.transactions.add(1, &[KeyValue::new("outcome", outcome)]);
        tracing::warn!(
            outcome,
            error = error.chain(),
            failures = self.failures,
            "transaction failed"
        );
        if !self.transactor.is_ready() {
            self.rebuild()?;
        }
        // Whatever call has waited for brokers has come back.
        self.shared.health.set_recovered();
        if self.failures >= WORRYING_FAILURES {
            self.shared.health.set_troubled("transactions fail");
        }
        self.pause();
        self.protocol.settle(&self.shared.assignment);
        Ok(())
    }

    fn rebuild(&mut self) -> Result<()> {
        let (shared, shutdown) = (&self.shared, &self.shutdown);
        self.transactor.replace(|| shared.has_failed() || shutdown.is_cancelled())
    }

    /// Longer after each failure in a row.
    fn pause(&self) {
        let policy = Policy::endless(Duration::from_millis(50), Duration::from_secs(5));
        let nth = usize::try_from(self.failures.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(pause) = policy.pauses().nth(nth) {
            std::thread::sleep(pause);
        }
    }
}
