//! Polls the input topic on a thread of its own, the only one that touches the consumer.
//!
//! Each turn rewinds the partitions of a failed transaction, hands references to the fetchers, pauses
//! or resumes, and polls. With `limits.max_in_flight` references in flight the next poll waits for
//! room, but never for long, so that the group does not take the worker for dead: then it polls with
//! all partitions paused.

pub mod awaiting_schema;
mod lag;
mod membership;
mod pause;
pub mod rebalance;
pub mod receive;
mod rewind;
pub mod start_offsets;
pub mod startup;

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, LEAVING_MS};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::error::kafka_error;
use crate::worker::breaker::Breaker;
use crate::worker::consume::lag::ConsumerLag;
use crate::worker::consume::membership::Membership;
use crate::worker::consume::pause::PausedPartitions;
use crate::worker::consume::rebalance::Rebalancer;
use crate::worker::consume::receive::MessageReceiver;
use crate::worker::consume::rewind::Rewinder;
use crate::worker::consume::start_offsets::StartOffsets;
use crate::worker::context::Context;
use crate::worker::deadlines::Deadlines;
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::stage::Stage;

const IDLE_POLL: Duration = Duration::from_millis(100);
/// While there is no room, or partitions are paused.
const BUSY_POLL: Duration = Duration::from_millis(5);
/// Longest wait for room before partitions pause and polling goes on.
const MAX_WAIT_FOR_ROOM: Duration = Duration::from_secs(1);
/// Messages taken in one turn.
const MAX_BURST: usize = 128;
/// Time limit for leaving the group.
const CLOSE_LIMIT: Duration = Duration::from_millis(LEAVING_MS);

pub struct Consumer {
    consumer: Arc<BaseConsumer<Rebalancer>>,
    topic: Arc<str>,
    /// `kafka.group_instance_id`.
    instance: Option<String>,
    max_in_flight: usize,
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    breaker: Arc<Breaker>,
    starts: Arc<StartOffsets>,
    paused: Arc<PausedPartitions>,
    receiver: MessageReceiver,
    rewinder: Rewinder,
    lag: ConsumerLag,
    deadlines: Deadlines,
    shutdown: CancellationToken,
    /// The membership that the stored group metadata belongs to.
    membership: Option<Membership>,
    last_poll: Instant,
    draining_since: Option<Instant>,
}

impl Consumer {
    pub fn new(
        config: &Config,
        context: &Context,
        consumer: BaseConsumer<Rebalancer>,
        receiver: MessageReceiver,
        deadlines: Deadlines,
        shutdown: CancellationToken,
    ) -> Self {
        let Context { ownership, run, observer, breaker, .. } = context.clone();
        let topic: Arc<str> = config.kafka.input_topic.as_str().into();
        Self {
            instance: config.kafka.group_instance_id.clone(),
            max_in_flight: config.limits.max_in_flight.max(1),
            starts: Arc::clone(consumer.context().starts()),
            paused: Arc::clone(consumer.context().paused()),
            rewinder: Rewinder::new(
                Arc::clone(&topic),
                Arc::clone(&ownership),
                deadlines.poll_wait(),
            ),
            lag: ConsumerLag::new(&topic),
            consumer: Arc::new(consumer),
            topic,
            ownership,
            run,
            observer,
            breaker,
            receiver,
            deadlines,
            shutdown,
            membership: None,
            last_poll: Instant::now(),
            draining_since: None,
        }
    }

    /// Runs until shutdown or failure, and drains in the first case. The consumer stays open: it
    /// must not leave its group before the publisher's last commit.
    pub fn run(&mut self) -> Result<()> {
        self.consumer.subscribe(&[&self.topic]).map_err(|error| {
            kafka_error("the input topic can't be subscribed to", error)
                .with_context("kafka.input_topic", &self.topic)
        })?;
        while !self.shutdown.is_cancelled() && !self.run.has_failed() {
            self.turn()?;
        }
        if !self.run.has_failed() {
            self.drain()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        self.starts.start(&self.consumer)?;
        if let Some(error) = self.starts.take_error() {
            self.check_error(error)?;
        }
        self.rewinder.rewind(&self.consumer);
        self.receiver.read(|_| {});
        self.measure();
        if self.is_full() && !self.is_held_up() && self.last_poll.elapsed() < MAX_WAIT_FOR_ROOM {
            std::thread::sleep(BUSY_POLL);
            return Ok(());
        }
        self.balance()?;
        self.poll()
    }

    /// Polls once, and takes what else has arrived.
    fn poll(&mut self) -> Result<()> {
        let is_busy = !self.paused.is_empty() || self.is_full();
        let consumer = &self.consumer;
        self.observer.max_durations.poll_gap(self.last_poll.elapsed());
        let polling = Instant::now();
        let mut poll = self.observer.spans.poll(polling);
        let polled = consumer.poll(if is_busy { BUSY_POLL } else { IDLE_POLL });
        self.last_poll = Instant::now();
        // Before the record goes on: no transaction may carry it without the group's metadata.
        membership::refresh(consumer, &self.ownership, &self.run, &mut self.membership);
        if polled.is_none() {
            return Ok(());
        }
        let started = Instant::now();
        let mut next = polled;
        let (mut taken, mut messages) = (0, 0);
        while let Some(polled) = next {
            match polled {
                Ok(message) => {
                    self.receiver.receive(&message);
                    poll.message();
                    self.receiver.read(|trace| poll.link(trace));
                    messages += 1;
                }
                Err(error) => self.check_error(error)?,
            }
            taken += 1;
            // Checked before the next poll: a polled message must be taken, or its offset is skipped.
            if taken == MAX_BURST || self.receiver.held() >= self.max_in_flight {
                break;
            }
            next = consumer.poll(Duration::ZERO);
        }
        poll.end();
        self.observer.semconv.polled(messages, polling.elapsed());
        self.observer.busy(Stage::Consume, started);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.receiver.in_flight() >= self.max_in_flight
    }

    /// Whether nothing is to be taken, whatever room there is.
    fn is_held_up(&self) -> bool {
        self.ownership.is_suspended()
            || self.breaker.is_open()
            || self.receiver.awaiting_schema() > 0
    }

    /// Pauses after a long wait for room, resumes when half of the work in flight is done. Neither
    /// is cheap: pausing throws the prefetched messages away, and librdkafka may take a second to
    /// fetch them again.
    fn balance(&self) -> Result<()> {
        if self.is_held_up() || self.is_full() {
            self.pause_all()
        } else if self.receiver.in_flight() <= self.max_in_flight / 2 {
            self.paused
                .resume_all(&self.consumer)
                .map_err(|error| kafka_error("partitions can't be resumed", error))
        } else if !self.paused.is_empty() {
            // One that has just started would take all the room that the others wait for.
            self.pause_all()
        } else {
            Ok(())
        }
    }

    fn pause_all(&self) -> Result<()> {
        self.paused
            .pause_all(&self.consumer, self.starts.started())
            .map_err(|error| kafka_error("partitions can't be paused", error))
    }

    fn measure(&mut self) {
        let held = self.receiver.held();
        let is_store_down = self.breaker.is_open();
        self.lag.measure(&self.consumer, &self.starts, held, &self.observer, is_store_down);
        let metrics = &self.observer.metrics;
        metrics.in_flight_references.record(self.receiver.in_flight() as u64, &[]);
        metrics.awaiting_schema_messages.record(self.receiver.awaiting_schema() as u64, &[]);
        metrics.partitions_paused.record(u64::from(!self.paused.is_empty()), &[]);
        metrics.partitions_assigned.record(self.ownership.partitions().len() as u64, &[]);
        for (deadline, seconds) in self.deadlines.margins(&self.observer.max_durations) {
            metrics.deadline_margin_seconds.record(seconds, &[KeyValue::new("deadline", deadline)]);
        }
    }

    /// Lets the work in flight finish, polling on with everything paused.
    fn drain(&mut self) -> Result<()> {
        let began = Instant::now();
        self.draining_since = Some(began);
        let deadline = began + self.deadlines.drain();
        self.run.health.set_not_ready("draining");
        tracing::info!(in_flight = self.receiver.in_flight(), "draining");
        while self.receiver.in_flight() > 0
            && Instant::now() < deadline
            && !self.run.has_failed()
            // After a failed transaction there is nothing left to finish.
            && !self.ownership.is_suspended()
        {
            self.pause_all()?;
            // A message that slips through is not tracked, so the next owner reads it.
            if let Some(Err(error)) = self.consumer.poll(BUSY_POLL) {
                self.check_error(error)?;
            }
        }
        let in_flight = self.receiver.in_flight();
        if in_flight > 0 {
            let late = Instant::now() >= deadline;
            tracing::warn!(
                in_flight,
                deadline_exceeded = late,
                "unfinished work is left to the next owner"
            );
        }
        Ok(())
    }

    /// # Errors
    /// `ErrorKind::Kafka` when the consumer can't go on after `error`.
    fn check_error(&self, error: KafkaError) -> Result<()> {
        if let Some((RDKafkaErrorCode::FencedInstanceId, reason)) =
            self.consumer.client().fatal_error()
        {
            return Err(Error::new(
                ErrorKind::Kafka,
                "another worker has the same group instance id",
            )
            .with_context("field", "kafka.group_instance_id")
            .with_context("value", self.instance.as_deref().unwrap_or_default())
            .with_context("allowed", "an id that no other running worker has")
            .with_source(reason));
        }
        let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_))
            || matches!(
                error.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                        | RDKafkaErrorCode::TopicAuthorizationFailed
                        | RDKafkaErrorCode::GroupAuthorizationFailed
                        | RDKafkaErrorCode::Fatal
                )
            );
        if is_fatal {
            return Err(kafka_error("the consumer can't go on", error));
        }
        tracing::warn!(%error, "the consumer reports an error");
        Ok(())
    }

    /// Waits for the publisher's end, then leaves the group, both within a limit: dropping the
    /// consumer would wait without one. A transaction that is still open then is ended by the next
    /// owner, or by the brokers.
    pub fn close(self, publisher_ended: &std::sync::mpsc::Receiver<()>) {
        self.starts.stop();
        let since = self.draining_since.unwrap_or_else(Instant::now);
        let deadline = since + self.deadlines.last_commit();
        while publisher_ended.try_recv() == Err(TryRecvError::Empty) {
            if Instant::now() >= deadline {
                // The publisher must not commit what is given back here.
                self.ownership.suspend_all();
                self.run.fail(Error::new(
                    ErrorKind::Kafka,
                    "a transaction did not end in time: it is left to the next owner",
                ));
                break;
            }
            // A revocation may need one more commit.
            let _ = self.consumer.poll(BUSY_POLL);
        }
        let deadline = Instant::now() + CLOSE_LIMIT;
        if let Err(error) = self.consumer.close_queue() {
            tracing::warn!(%error, "the consumer could not be closed");
        } else {
            while !self.consumer.closed() && Instant::now() < deadline {
                // Serves the last revocation; no message counts any more.
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
