//! Polled messages on their way into the pipeline: detached from the consumer, read, told to the
//! publisher, and cut into references for the fetchers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Instant;

use rdkafka::message::{BorrowedMessage, Message};
use tokio::sync::mpsc;

use crate::error::Result;
use crate::message::{RawRecord, Requests, SourcePosition};
use crate::worker::consume::awaiting_schema::AwaitingSchema;
use crate::worker::context::Context;
use crate::worker::exactly_once::assignment::Polled;
use crate::worker::exactly_once::in_flight::InFlight;
use crate::worker::outbox::Outbox;
use crate::worker::outbox::event::PublisherEvent;
use crate::worker::outcome::{Origin, Reference};
use crate::worker::ownership::Ownership;
use crate::worker::source_message::SourceMessage;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::spans::Trace;

/// Takes polled messages into the pipeline.
pub struct MessageReceiver {
    ownership: Arc<Ownership>,
    observer: Arc<Observer>,
    outbox: Outbox,
    publisher: Sender<PublisherEvent>,
    awaiting_schema: AwaitingSchema,
    in_flight: InFlight,
    fetcher: mpsc::UnboundedSender<Reference>,
}

impl MessageReceiver {
    /// `fetcher` has no bound of its own: the consumer polls nothing above `limits.max_in_flight`.
    pub fn new(
        context: &Context,
        publisher: Sender<PublisherEvent>,
        awaiting_schema: AwaitingSchema,
        fetcher: mpsc::UnboundedSender<Reference>,
    ) -> Self {
        let Context { ownership, observer, outbox, .. } = context.clone();
        let in_flight = InFlight::default();
        Self { ownership, observer, outbox, publisher, awaiting_schema, in_flight, fetcher }
    }

    /// References polled and not yet committed or dropped.
    pub fn in_flight(&self) -> usize {
        self.in_flight.references()
    }

    /// Messages that wait for their schema; they are not in flight yet.
    pub fn awaiting_schema(&self) -> usize {
        self.awaiting_schema.len()
    }

    /// References in flight, and messages that wait for their schema.
    pub fn held(&self) -> usize {
        self.in_flight().saturating_add(self.awaiting_schema())
    }

    /// Takes a polled message in, unless it will be read again.
    pub fn receive(&mut self, borrowed: &BorrowedMessage<'_>) {
        let (partition, offset) = (borrowed.partition(), borrowed.offset());
        match self.ownership.polled(partition, offset) {
            Polled::Taken { epoch } => self.awaiting_schema.push(Arc::new(detach(borrowed, epoch))),
            Polled::Dropped => {
                tracing::debug!(partition, offset, "dropped a message that will be read again");
            }
            Polled::WentBack => {
                tracing::warn!(
                    partition,
                    offset,
                    "received an offset twice: rewinding the partition"
                );
                // Drops the guards of its work, which is stale. While they live, the partition may
                // stay paused.
                let _ = self.publisher.send(PublisherEvent::Lost { partitions: vec![partition] });
            }
        }
    }

    /// Reads messages as far as their schemas are known; `on_read` gets the trace of each.
    pub fn read(&mut self, mut on_read: impl FnMut(&Trace)) {
        while let Some((message, parsed)) = self.awaiting_schema.pop(&self.ownership) {
            on_read(&self.track(message, parsed));
        }
    }

    /// Tells the publisher of a message and hands its references on; returns the trace of the first
    /// one.
    fn track(&self, message: Arc<SourceMessage>, parsed: Result<Requests>) -> Trace {
        let Observer { tally, metrics, spans, .. } = &*self.observer;
        tally.messages.fetch_add(1, Ordering::Relaxed);
        metrics.messages.add(1, &[]);
        let records = parsed.as_ref().map_or(1, |requests| requests.images.len());
        let guard = self.in_flight.enter(records);
        // The publisher ends before this thread only when the run has failed.
        let _ =
            self.publisher.send(PublisherEvent::Tracked { message: message.id(), records, guard });
        let requests = match parsed {
            Ok(requests) => requests,
            Err(error) => {
                let trace = spans.process(&message, 0, None);
                self.outbox.reject(Origin { message, index: 0, trace: trace.clone() }, error);
                return trace;
            }
        };
        let skipped = requests.skipped as u64;
        tally.skipped.fetch_add(skipped, Ordering::Relaxed);
        metrics.skipped.add(skipped, &[]);
        let mut first = None;
        for (index, request) in requests.images.into_iter().enumerate() {
            let trace = spans.process(&message, index, Some(&request));
            first.get_or_insert_with(|| trace.clone());
            let origin = Origin { message: Arc::clone(&message), index, trace };
            // The fetchers end before this thread only when the run has failed.
            let _ = self.fetcher.send(Reference { origin, request });
        }
        first.unwrap_or_else(|| spans.skipped(&message, requests.skipped))
    }
}

fn detach(borrowed: &BorrowedMessage<'_>, epoch: u64) -> SourceMessage {
    SourceMessage {
        position: SourcePosition {
            topic: borrowed.topic().into(),
            partition: borrowed.partition(),
            offset: borrowed.offset(),
        },
        epoch,
        original: RawRecord::detach(borrowed),
        polled: Instant::now(),
    }
}
