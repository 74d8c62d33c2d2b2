//! Polls the input topic on a thread of its own, and is the only one to touch the consumer.
//!
//! Each turn: rewind what a failed transaction left behind, hand records to the fetchers, pause
//! or resume, poll. With `limits.max_in_flight` references in hand the next poll waits for room,
//! but never for long, whatever the other stages do, so that the group does not take it for dead:
//! then it polls with all partitions paused.

pub mod intake;
pub mod lag;
mod membership;
pub mod rebalance;
pub mod startup;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, TryRecvError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::config::LEAVING_MS;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::headers;
use crate::message::{Requests, SourcePosition, Stage};
use crate::worker::coalesce::Lead;
use crate::worker::consume::intake::Intake;
use crate::worker::consume::lag::Backlog;
use crate::worker::consume::membership::Membership;
use crate::worker::consume::rebalance::Rebalancer;
use crate::worker::context::Shared;
use crate::worker::deadlines::Deadlines;
use crate::worker::exactly_once::assignment::Polled;
use crate::worker::exactly_once::ledger::references;
use crate::worker::item::Referenced;
use crate::worker::outcome::{Origin, Outcome};
use crate::worker::publish::event::Event;
use crate::worker::source::SourceMessage;
use crate::worker::telemetry::spans::Trace;
use crate::worker::telemetry::step::Step;

const IDLE_POLL: Duration = Duration::from_millis(100);
/// While there is no room, or partitions are paused.
const BUSY_POLL: Duration = Duration::from_millis(5);
/// How long a poll may be put off for want of room, before partitions are paused and polling goes on.
const LONGEST_HOLD: Duration = Duration::from_secs(1);
/// Messages taken in one turn.
const BURST: usize = 128;
/// Leaving the group may take so long.
const CLOSE_LIMIT: Duration = Duration::from_millis(LEAVING_MS);

pub struct Consume {
    pub consumer: BaseConsumer<Rebalancer>,
    pub topic: Arc<str>,
    /// `kafka.group_instance_id`.
    pub instance: Option<String>,
    pub shared: Arc<Shared>,
    pub publisher: Sender<Event>,
    pub fetch: mpsc::Sender<Referenced>,
    pub max_in_flight: usize,
    pub deadlines: Deadlines,
    pub shutdown: CancellationToken,
    /// Messages that can't be read yet.
    pub intake: Intake,
    /// Records that the fetchers have no room for yet.
    pub unhanded: VecDeque<Referenced>,
    pub backlog: Backlog,
    /// Whose group metadata the assignment holds.
    pub membership: Option<Membership>,
    pub last_poll: Instant,
    /// When it was told to end.
    pub ending_since: Option<Instant>,
}

impl Consume {
    /// Runs until shutdown or failure, and drains in the first case. The consumer stays open: it
    /// must not leave its group before the publisher's last commit.
    pub fn run(&mut self) -> Result<()> {
        self.consumer.subscribe(&[&self.topic]).map_err(|error| {
            kafka_error("the input topic can't be subscribed to", error)
                .with("kafka.input_topic", &self.topic)
        })?;
        while !self.shutdown.is_cancelled() && !self.shared.has_failed() {
            self.turn()?;
        }
        if !self.shared.has_failed() {
            self.drain()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        self.rewind();
        read(&self.shared, &self.publisher, &mut self.intake, &mut self.unhanded, |_| {});
        self.hand_over();
        self.measure();
        if self.is_full() && !self.is_held_up() && self.last_poll.elapsed() < LONGEST_HOLD {
            std::thread::sleep(BUSY_POLL);
            return Ok(());
        }
        self.balance()?;
        let is_paused = !self.consumer.context().paused().is_empty();
        let wait = if is_paused || self.is_full() { BUSY_POLL } else { IDLE_POLL };
        let consumer = &self.consumer;
        self.shared.slowest.poll_gap(self.last_poll.elapsed());
        let polling = Instant::now();
        let mut poll = self.shared.spans.poll(polling);
        let polled = consumer.poll(wait);
        self.last_poll = Instant::now();
        let Some(first) = polled else {
            membership::refresh(consumer, &self.shared, &mut self.membership);
            return Ok(());
        };
        let started = Instant::now();
        // Before the record goes on: no transaction may carry it without the group's metadata.
        membership::refresh(consumer, &self.shared, &mut self.membership);
        let mut next = Some(first);
        let (mut taken, mut messages) = (0, 0);
        while let Some(polled) = next {
            match polled {
                Ok(message) => {
                    receive(&self.shared, &self.publisher, &mut self.intake, &message);
                    poll.message();
                    let (unhanded, intake) = (&mut self.unhanded, &mut self.intake);
                    read(&self.shared, &self.publisher, intake, unhanded, |trace| {
                        poll.link(trace);
                    });
                    messages += 1;
                }
                Err(error) => self.survive(error)?,
            }
            taken += 1;
            // Asked before the next poll: what is polled must be taken, or its offset is skipped.
            let held = self.shared.in_flight().saturating_add(self.intake.len());
            if taken == BURST || held >= self.max_in_flight {
                break;
            }
            next = consumer.poll(Duration::ZERO);
        }
        poll.end();
        self.shared.conventional.polled(messages, polling.elapsed());
        self.shared.busy(Step::Consume, started);
        Ok(())
    }

    /// Moves records on as far as there is room; stale ones fall away.
    fn hand_over(&mut self) {
        while let Some(record) = self.unhanded.pop_front() {
            if !self.shared.is_current(&record.origin) {
                continue;
            }
            match self.fetch.try_send(record) {
                Ok(()) => {}
                Err(TrySendError::Full(record)) => {
                    self.unhanded.push_front(record);
                    return;
                }
                // The fetchers have ended: so will this run, at its next turn.
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }

    /// Whether nothing more is to be taken until some of it is done.
    fn is_full(&self) -> bool {
        self.shared.in_flight() >= self.max_in_flight || !self.unhanded.is_empty()
    }

    /// Whether nothing is to be taken whatever room there is.
    fn is_held_up(&self) -> bool {
        self.shared.assignment.is_suspended()
            || self.shared.breaker.is_open()
            || !self.intake.is_empty()
    }

    /// Pauses after a long wait for room, resumes when half of what is in flight is done. Neither
    /// comes cheap: pausing throws the prefetched messages away, and librdkafka may take a second to
    /// ask for them again.
    fn balance(&self) -> Result<()> {
        if self.is_held_up() || self.is_full() {
            self.pause_all()
        } else if self.shared.in_flight() <= self.max_in_flight / 2 {
            self.resume_all()
        } else {
            Ok(())
        }
    }

    fn pause_all(&self) -> Result<()> {
        let context = self.consumer.context();
        let mut paused = context.paused();
        let owned = self.shared.assignment.partitions();
        let running: Vec<i32> =
            owned.into_iter().filter(|partition| !paused.contains(partition)).collect();
        if running.is_empty() {
            return Ok(());
        }
        self.consumer
            .pause(&context.list(running.iter().copied()))
            .map_err(|error| kafka_error("partitions can't be paused", error))?;
        tracing::debug!(partitions = ?running, in_flight = self.shared.in_flight(), "paused");
        paused.extend(running);
        Ok(())
    }

    fn resume_all(&self) -> Result<()> {
        let context = self.consumer.context();
        let mut paused = context.paused();
        if paused.is_empty() {
            return Ok(());
        }
        self.consumer
            .resume(&context.list(paused.iter().copied()))
            .map_err(|error| kafka_error("partitions can't be resumed", error))?;
        tracing::debug!(partitions = ?paused, in_flight = self.shared.in_flight(), "resumed");
        paused.clear();
        Ok(())
    }

    /// Takes every partition that a failed transaction suspended back to its committed offset; one
    /// that can't be taken there yet is tried again at the next turn.
    fn rewind(&mut self) {
        let wanted = self.shared.assignment.to_rewind();
        if wanted.is_empty() {
            return;
        }
        let mut targets = Vec::new();
        for rewind in wanted {
            match rewind.first {
                Some(first) => targets.push((rewind.partition, first)),
                // Nothing of it has been polled: it stands where it was assigned.
                None => self.shared.assignment.rewound(rewind.partition),
            }
        }
        if targets.is_empty() {
            return;
        }
        if let Err(error) = self.seek(&targets) {
            tracing::warn!(%error, "a rewind failed and will be tried again");
        }
    }

    /// Seeks each (partition, first polled offset) to its committed offset, or, where there is
    /// none, to the first polled one: that is what `auto.offset.reset` chose.
    fn seek(&self, targets: &[(i32, i64)]) -> Result<(), KafkaError> {
        let (context, limit) = (self.consumer.context(), self.deadlines.poll_wait());
        let numbers = targets.iter().map(|(partition, _)| *partition);
        let committed = self.consumer.committed_offsets(context.list(numbers), limit)?;
        let mut wanted = context.list([]);
        for &(partition, first) in targets {
            let Some(found) = committed.find_partition(&self.topic, partition) else {
                continue;
            };
            found.error()?;
            let offset = match found.offset() {
                Offset::Offset(offset) => offset,
                _ => first,
            };
            wanted.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
            tracing::info!(partition, offset, "rewinding");
        }
        let sought = self.consumer.seek_partitions(wanted, limit)?;
        let mut failure = None;
        for element in sought.elements() {
            match element.error() {
                Ok(()) => self.shared.assignment.rewound(element.partition()),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn measure(&mut self) {
        let held = self.shared.in_flight().saturating_add(self.intake.len());
        self.backlog.measure(&self.consumer, &self.topic, held, &self.shared);
        let metrics = &self.shared.metrics;
        metrics.in_flight.record(self.shared.in_flight() as u64, &[]);
        metrics.awaiting_schema.record(self.intake.len() as u64, &[]);
        metrics.paused.record(u64::from(!self.consumer.context().paused().is_empty()), &[]);
        metrics.partitions.record(self.shared.assignment.partitions().len() as u64, &[]);
        for (deadline, seconds) in self.deadlines.slack(&self.shared.slowest) {
            metrics.slack_seconds.record(seconds, &[KeyValue::new("deadline", deadline)]);
        }
    }

    /// Lets what is in flight finish, polling on with everything paused.
    fn drain(&mut self) -> Result<()> {
        let began = Instant::now();
        self.ending_since = Some(began);
        let deadline = began + self.deadlines.drain();
        self.shared.health.set_not_ready("draining");
        tracing::info!(in_flight = self.shared.in_flight(), "draining");
        while self.shared.in_flight() > 0
            && Instant::now() < deadline
            && !self.shared.has_failed()
            // After a failed transaction there is nothing left to finish.
            && !self.shared.assignment.is_suspended()
        {
            self.hand_over();
            self.pause_all()?;
            // A message that slips through is not tracked, so the next owner reads it.
            if let Some(Err(error)) = self.consumer.poll(BUSY_POLL) {
                self.survive(error)?;
            }
        }
        let left = self.shared.in_flight();
        if left > 0 {
            let late = Instant::now() >= deadline;
            tracing::warn!(in_flight = left, late, "unfinished work is left to the next owner");
        }
        Ok(())
    }

    /// Decides whether the consumer can go on after `error`.
    fn survive(&self, error: KafkaError) -> Result<()> {
        if let Some((RDKafkaErrorCode::FencedInstanceId, reason)) =
            self.consumer.client().fatal_error()
        {
            return Err(Error::new(ErrorKind::Kafka, "another worker has taken this one's place")
                .with("field", "kafka.group_instance_id")
                .with("value", self.instance.as_deref().unwrap_or_default())
                .with("allowed", "an id that no other running worker has")
                .because(reason));
        }
        let hopeless = matches!(error, KafkaError::MessageConsumptionFatal(_))
            || matches!(
                error.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                        | RDKafkaErrorCode::TopicAuthorizationFailed
                        | RDKafkaErrorCode::GroupAuthorizationFailed
                        | RDKafkaErrorCode::Fatal
                )
            );
        if hopeless {
            return Err(kafka_error("the consumer can't go on", error));
        }
        tracing::warn!(%error, "the consumer reports an error");
        Ok(())
    }

    /// Waits for the publisher's end, then leaves the group, both within a limit: dropping the
    /// consumer would wait without one. A transaction that is still under way then is ended by its
    /// successor, or by the brokers.
    pub fn close(self, publisher_ended: &std::sync::mpsc::Receiver<()>) {
        let since = self.ending_since.unwrap_or_else(Instant::now);
        let deadline = since + self.deadlines.last_commit();
        while publisher_ended.try_recv() == Err(TryRecvError::Empty) {
            if Instant::now() >= deadline {
                // It must not go on with what is given back here.
                self.shared.assignment.suspend_all();
                self.shared.fail(Error::new(
                    ErrorKind::Kafka,
                    "a transaction did not end in time: it is left to the next owner",
                ));
                break;
            }
            // It may be asked to commit once more, by a revocation.
            let _ = self.consumer.poll(BUSY_POLL);
        }
        let deadline = Instant::now() + CLOSE_LIMIT;
        if let Err(error) = self.consumer.close_queue() {
            tracing::warn!(%error, "the consumer could not be closed");
        } else {
            while !self.consumer.closed() && Instant::now() < deadline {
                // Serves the last revocation; there is no message that still counts.
                let _ = self.consumer.poll(Duration::from_millis(50));
            }
        }
        if self.consumer.closed() {
            tracing::info!("left the consumer group");
            return;
        }
        tracing::warn!("the consumer did not leave its group in time");
        std::mem::forget(self.consumer);
    }
}

/// Takes a polled message in, if it is to be taken.
fn receive(
    shared: &Shared,
    publisher: &Sender<Event>,
    intake: &mut Intake,
    borrowed: &BorrowedMessage<'_>,
) {
    let (partition, offset) = (borrowed.partition(), borrowed.offset());
    match shared.assignment.polled(partition, offset) {
        Polled::Taken { epoch } => intake.add(Arc::new(detach(borrowed, epoch))),
        Polled::Dropped => {
            tracing::debug!(partition, offset, "dropped a message that will be read again");
        }
        Polled::WentBack => {
            tracing::warn!(partition, offset, "an offset came again: rewinding its partition");
            // Nothing else would tell of its work, which is stale: the partition may stay paused
            // for the places that it takes.
            let _ = publisher.send(Event::Lost { partitions: vec![partition] });
        }
    }
}

/// Reads messages as far as their schemas are known; `each` is told of each one's trace.
fn read(
    shared: &Shared,
    publisher: &Sender<Event>,
    intake: &mut Intake,
    unhanded: &mut VecDeque<Referenced>,
    mut each: impl FnMut(&Trace),
) {
    while let Some((message, parsed)) = intake.next(shared) {
        if let Some(trace) = track(shared, publisher, unhanded, message, parsed) {
            each(&trace);
        }
    }
}

/// Tells the publisher of a message and queues its records; the trace of the first one.
fn track(
    shared: &Shared,
    publisher: &Sender<Event>,
    unhanded: &mut VecDeque<Referenced>,
    message: Arc<SourceMessage>,
    parsed: Result<Requests>,
) -> Option<Trace> {
    let records = match &parsed {
        Ok(requests) => requests.images.len(),
        Err(_) => 1,
    };
    shared.tally.messages.fetch_add(1, Ordering::Relaxed);
    shared.metrics.messages.add(1, &[]);
    shared.enter(references(records));
    let (partition, offset) = (message.position.partition, message.position.offset);
    // The publisher ends before this thread only when the run has failed.
    let _ = publisher.send(Event::Tracked { partition, epoch: message.epoch, offset, records });
    let mut first = None;
    match parsed {
        Ok(requests) => {
            if requests.images.is_empty() {
                first = Some(shared.spans.skipped(&message, requests.skipped));
            }
            let skipped = requests.skipped as u64;
            shared.tally.skipped.fetch_add(skipped, Ordering::Relaxed);
            shared.metrics.skipped.add(skipped, &[]);
            unhanded.extend(requests.images.into_iter().enumerate().map(|(index, request)| {
                let trace = shared.spans.process(&message, index, Some(&request));
                first.get_or_insert_with(|| trace.clone());
                let origin = Origin { message: Arc::clone(&message), index, trace };
                Referenced { origin, request, lead: Lead::default() }
            }));
        }
        Err(error) => {
            let trace = shared.spans.process(&message, 0, None);
            first = Some(trace.clone());
            let origin = Origin { message, index: 0, trace };
            let outcome = Outcome::failed(origin, None, Stage::Consume, error, 1);
            let _ = publisher.send(Event::Finished(vec![outcome]));
        }
    }
    first
}

fn detach(borrowed: &BorrowedMessage<'_>, epoch: u64) -> SourceMessage {
    SourceMessage {
        position: SourcePosition {
            topic: borrowed.topic().into(),
            partition: borrowed.partition(),
            offset: borrowed.offset(),
        },
        epoch,
        original: headers::original(borrowed),
        polled: Instant::now(),
    }
}

fn kafka_error(message: &'static str, error: KafkaError) -> Error {
    Error::new(ErrorKind::Kafka, message).because(error)
}
