//! Spans of a reference, by OpenTelemetry's semantic conventions for messaging, version 1.42.0 (in
//! development), and for S3.
//!
//! A reference has one `process` span, which begins when its message is polled and is a child of the
//! producer's span. Below it each stage has one span, which begins where the one before ended: no
//! part of the time is without a name. Stages run on different threads and hand work on through
//! channels, so no span stays open on a thread: a stage reports its end ([`Trace::step`]), and the
//! span is built then, from times in the past. Batches and transactions have spans of their own
//! (`batches`), linked to those of their references.
//!
//! A reference whose trace is not recorded carries nothing ([`Trace::default`]), and every call here
//! returns at once. Without an exporter that is every reference.

mod attributes;
mod batches;
mod commit;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{
    Link, Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt,
};
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};
use opentelemetry_semantic_conventions::attribute;
use parking_lot::Mutex;

use crate::config::Kafka;
use crate::error::Error;
use crate::message::{ImageRequest, RawHeader, TraceContext};
use crate::worker::source_message::SourceMessage;
use attributes::Names;
pub use batches::BatchTimes;
pub use commit::{CommitSpans, TransactionTiming};

/// Makes the spans of one run; nothing where none are exported.
#[derive(Clone, Debug, Default)]
pub struct Spans(Option<Arc<Exported>>);

#[derive(Debug)]
struct Exported {
    tracer: SdkTracer,
    names: Names,
}

/// The spans of one reference; nothing by default.
#[derive(Clone, Debug, Default)]
pub enum Trace {
    /// Not recorded: the trace context of its message is passed on as it is.
    #[default]
    Off,
    /// Not recorded, by the choice of our own sampler: the context that is passed on says so.
    Unsampled(Arc<TraceContext>),
    Recorded(Arc<Recorded>),
}

/// Ends the `process` span when the last clone is dropped.
#[derive(Debug)]
pub struct Recorded {
    exported: Arc<Exported>,
    /// The context of the `process` span.
    context: SpanContext,
    /// The context of the message's producer; its own where there is none.
    creation: SpanContext,
    clock: Clock,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// The `process` span, until it is ended.
    span: Option<SdkSpan>,
    /// Where the next stage's span begins.
    since: Instant,
}

/// One reading of the wall clock for all of a trace's times, so that they keep their order.
#[derive(Clone, Copy, Debug)]
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    /// A clock on which `instant` has its true distance from now.
    fn at(instant: Instant) -> Self {
        let now = SystemTime::now();
        Self { instant, time: now.checked_sub(instant.elapsed()).unwrap_or(now) }
    }

    fn time(&self, instant: Instant) -> SystemTime {
        let time = match instant.checked_duration_since(self.instant) {
            Some(later) => self.time.checked_add(later),
            None => self.time.checked_sub(self.instant.saturating_duration_since(instant)),
        };
        time.unwrap_or(self.time)
    }
}

impl Spans {
    /// Spans by `tracer`; none without one.
    pub fn new(tracer: Option<SdkTracer>, kafka: &Kafka) -> Self {
        Self(tracer.map(|tracer| Arc::new(Exported { tracer, names: Names::new(kafka) })))
    }

    /// Begins the span of record `index` of a message that was polled just now. `request` is absent
    /// where the message names no image, or can't be read.
    pub fn process(
        &self,
        message: &SourceMessage,
        index: usize,
        request: Option<&ImageRequest>,
    ) -> Trace {
        let Some(exported) = &self.0 else {
            return Trace::Off;
        };
        let given = TraceContext::from_headers(&message.original.headers);
        let parent = given.as_ref().map(TraceContext::to_span_context);
        let around = match &parent {
            Some(context) => Context::new().with_remote_span_context(context.clone()),
            None => Context::new(),
        };
        let names = &exported.names;
        let clock = Clock::at(message.polled);
        let span = SpanBuilder::from_name(names.process.clone())
            .with_kind(SpanKind::Consumer)
            .with_start_time(clock.time)
            .with_attributes(attributes::process(names, message, index, request))
            .start_with_context(&exported.tracer, &around);
        let context = span.span_context().clone();
        if !span.is_recording() {
            return match given {
                // Also where a sampler drops a sampled parent: a reader's sampler may differ.
                Some(_) => Trace::Off,
                None if context.is_valid() => {
                    Trace::Unsampled(Arc::new(TraceContext::from_span(&context, None)))
                }
                None => Trace::Off,
            };
        }
        Trace::Recorded(Arc::new(Recorded {
            exported: Arc::clone(exported),
            creation: parent.unwrap_or_else(|| context.clone()),
            context,
            clock,
            open: Mutex::new(Open { span: Some(span), since: message.polled }),
        }))
    }

    /// The span of a message that names no image: it ends at once.
    pub fn skipped(&self, message: &SourceMessage, events: usize) -> Trace {
        let trace = self.process(message, 0, None);
        if let Trace::Recorded(recorded) = &trace {
            let events = i64::try_from(events).unwrap_or(i64::MAX);
            let attributes = vec![
                KeyValue::new(attributes::OUTCOME, "skipped"),
                KeyValue::new(attributes::SKIPPED_EVENTS, events),
            ];
            recorded.finish(Instant::now(), attributes, Status::Unset);
        }
        trace
    }
}

impl Trace {
    /// Stage `name` ended at `until`; it began where the one before ended.
    pub fn step(&self, name: &'static str, until: Instant) {
        if let Self::Recorded(recorded) = self {
            recorded.step(SpanBuilder::from_name(name), until, None);
        }
    }

    /// Stage `name` ended now, with an error if it failed.
    pub fn step_of(&self, name: &'static str, failed: Option<&Error>) {
        if let Self::Recorded(recorded) = self {
            recorded.step(SpanBuilder::from_name(name), Instant::now(), failed);
        }
    }

    /// The object was read just now, in `attempts` tries: its bytes, or the error.
    pub fn fetched(&self, request: &ImageRequest, attempts: u32, read: Result<usize, &Error>) {
        if let Self::Recorded(recorded) = self {
            let builder = SpanBuilder::from_name("fetch")
                .with_kind(SpanKind::Client)
                .with_attributes(attributes::fetch(request, attempts, read.ok()));
            recorded.step(builder, Instant::now(), read.err());
        }
    }

    /// The reference gets the result of another one, whose span is `leader`.
    pub fn coalesced(&self, leader: Option<&SpanContext>) {
        if let Self::Recorded(recorded) = self {
            let links = leader.map(|leader| Link::with_context(leader.clone())).into_iter();
            let builder = SpanBuilder::from_name("coalesce wait").with_links(links.collect());
            recorded.step(builder, Instant::now(), None);
        }
    }

    /// The context of log lines about this reference, whose message carries `headers`.
    pub fn log_context(&self, headers: &[RawHeader]) -> Option<SpanContext> {
        match self {
            Self::Recorded(recorded) => Some(recorded.context.clone()),
            Self::Unsampled(context) => Some(context.to_span_context()),
            Self::Off => {
                let given = TraceContext::from_headers(headers);
                given.as_ref().map(TraceContext::to_span_context)
            }
        }
    }

    /// Its `process` span, if it is recorded.
    pub fn context(&self) -> Option<&SpanContext> {
        match self {
            Self::Recorded(recorded) => Some(&recorded.context),
            Self::Off | Self::Unsampled(_) => None,
        }
    }
}

/// Log lines belong to the span of `context` until the guard is dropped.
pub fn attach(context: Option<SpanContext>) -> ContextGuard {
    let around = Context::current();
    match context {
        Some(context) => around.with_remote_span_context(context),
        None => around,
    }
    .attach()
}

impl Recorded {
    fn step(&self, builder: SpanBuilder, until: Instant, failed: Option<&Error>) {
        let since = std::mem::replace(&mut self.open.lock().since, until);
        let mut span = self.begin(builder, since);
        if let Some(error) = failed {
            attributes::fail(&mut span, error);
        }
        span.end_with_timestamp(self.clock.time(until.max(since)));
    }

    /// A span below the `process` span.
    fn begin(&self, builder: SpanBuilder, since: Instant) -> SdkSpan {
        let around = Context::new().with_remote_span_context(self.context.clone());
        builder
            .with_start_time(self.clock.time(since))
            .start_with_context(&self.exported.tracer, &around)
    }

    /// Ends the `process` span, once.
    fn finish(&self, at: Instant, attributes: Vec<KeyValue>, status: Status) {
        if let Some(mut span) = self.open.lock().span.take() {
            span.set_attributes(attributes);
            span.set_status(status);
            span.end_with_timestamp(self.clock.time(at));
        }
    }
}

impl Drop for Recorded {
    /// Dropped without an answer: its partition went, or a transaction failed, and the next owner of
    /// the partition reads the message again.
    fn drop(&mut self) {
        let attributes = vec![
            KeyValue::new(attributes::OUTCOME, "stale"),
            KeyValue::new(attribute::ERROR_TYPE, "stale"),
        ];
        self.finish(Instant::now(), attributes, Status::error("given up: it will be read again"));
    }
}
