//! Spans of work for many references at once: a poll, a batch in the model, a transaction. Each is
//! one span in a trace of its own, linked to those of its references (at most
//! `OTEL_SPAN_LINK_COUNT_LIMIT`, 128 by default). There is none where no reference is recorded. Every
//! reference's trace has its own view of the same time.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry::trace::{Link, Span, SpanBuilder, SpanContext, SpanKind, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span as SdkSpan;
use opentelemetry_semantic_conventions::attribute;

use super::attributes::{BATCH_IMAGES, count, fail};
use super::{Clock, Exported, Recorded, Spans, Trace};
use crate::error::Error;

/// One poll, while its messages are taken.
#[derive(Debug)]
pub struct Poll(Option<Polling>);

#[derive(Debug)]
struct Polling {
    exported: Arc<Exported>,
    began: Instant,
    messages: usize,
    links: Vec<Link>,
}

/// The times of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchTimes {
    /// The vision tower began.
    pub began: Instant,
    /// The vision tower ended.
    pub encoded: Instant,
    /// The decoder began.
    pub writing: Instant,
    /// The decoder ended.
    pub written: Instant,
}

impl Poll {
    #[cfg(test)]
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// One message.
    pub fn message(&mut self) {
        if let Some(polling) = &mut self.0 {
            polling.messages += 1;
        }
    }

    /// The trace of a message's first record, once that is read.
    pub fn link(&mut self, trace: &Trace) {
        if let (Some(polling), Trace::Recorded(recorded)) = (&mut self.0, trace) {
            polling.links.push(Link::with_context(recorded.creation.clone()));
        }
    }

    /// Ends the span.
    pub fn end(self) {
        let Some(polling) = self.0.filter(|polling| !polling.links.is_empty()) else {
            return;
        };
        let Polling { exported, began, messages, links } = polling;
        let names = &exported.names;
        let mut attributes = names.consumer("poll", "receive");
        attributes.push(KeyValue::new(attribute::MESSAGING_BATCH_MESSAGE_COUNT, count(messages)));
        let builder = SpanBuilder::from_name(names.poll.clone())
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
            .with_links(links);
        let clock = Clock::at(began);
        exported.root(builder, &clock, began).end_with_timestamp(clock.time(Instant::now()));
    }
}

impl Exported {
    fn root(&self, builder: SpanBuilder, clock: &Clock, began: Instant) -> SdkSpan {
        let builder = builder.with_start_time(clock.time(began));
        builder.start_with_context(&self.tracer, &Context::new())
    }
}

impl Spans {
    /// A poll that began at `began`.
    pub fn poll(&self, began: Instant) -> Poll {
        Poll(self.0.as_ref().map(|exported| Polling {
            exported: Arc::clone(exported),
            began,
            messages: 0,
            links: Vec::new(),
        }))
    }

    /// A batch left the model: `inference batch`, with `encode` and `caption` below it, and
    /// in each reference's trace `batch wait` and `inference`.
    pub fn inferred<'t>(
        &self,
        traces: impl ExactSizeIterator<Item = &'t Trace>,
        times: BatchTimes,
    ) {
        let Some(exported) = &self.0 else {
            return;
        };
        let images = traces.len();
        let recorded: Vec<&Arc<Recorded>> = traces.filter_map(of_recorded).collect();
        if recorded.is_empty() {
            return;
        }
        let clock = Clock::at(times.began);
        let builder = SpanBuilder::from_name("inference batch")
            .with_attributes([KeyValue::new(BATCH_IMAGES, count(images))])
            .with_links(recorded.iter().map(|trace| trace.link()).collect());
        let mut batch = exported.root(builder, &clock, times.began);
        let context = batch.span_context().clone();
        let around = Context::new().with_remote_span_context(context.clone());
        let parts =
            [("encode", times.began, times.encoded), ("caption", times.writing, times.written)];
        for (name, began, ended) in parts {
            SpanBuilder::from_name(name)
                .with_start_time(clock.time(began))
                .start_with_context(&exported.tracer, &around)
                .end_with_timestamp(clock.time(ended));
        }
        batch.end_with_timestamp(clock.time(times.written));
        for trace in recorded {
            trace.step(SpanBuilder::from_name("batch wait"), times.began, None);
            let view = SpanBuilder::from_name("inference").with_links(linked(&context));
            trace.step(view, times.written, None);
        }
    }

    /// A transaction ended: `commit TOPIC`. Its context, for the references' own views of it.
    pub(super) fn transaction(
        &self,
        links: Vec<Link>,
        messages: usize,
        (began, ended): (Instant, Instant),
        failed: Option<&Error>,
    ) -> Option<SpanContext> {
        let exported = self.0.as_ref().filter(|_| !links.is_empty())?;
        let names = &exported.names;
        let mut attributes = names.consumer("commit", "settle");
        attributes.push(KeyValue::new(attribute::MESSAGING_BATCH_MESSAGE_COUNT, count(messages)));
        let builder = SpanBuilder::from_name(names.commit.clone())
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
            .with_links(links);
        let clock = Clock::at(began);
        let mut span = exported.root(builder, &clock, began);
        if let Some(error) = failed {
            fail(&mut span, error);
        }
        span.end_with_timestamp(clock.time(ended));
        Some(span.span_context().clone())
    }
}

impl Recorded {
    pub(super) fn link(&self) -> Link {
        Link::with_context(self.context.clone())
    }
}

/// A link to a span, where it is recorded.
pub(super) fn linked(context: &SpanContext) -> Vec<Link> {
    let link = context.is_sampled().then(|| Link::with_context(context.clone()));
    link.into_iter().collect()
}

fn of_recorded(trace: &Trace) -> Option<&Arc<Recorded>> {
    match trace {
        Trace::Recorded(recorded) => Some(recorded),
        Trace::Off | Trace::Unsampled(_) => None,
    }
}
