//! The spans from an outcome to the end of its transaction: `commit wait`, then `commit` with
//! `send TOPIC` below it. The record carries the id of `send` in `traceparent`, so that a reader's
//! span becomes its child.
//!
//! The ids are set when the record is written, the times when its transaction has ended. Records of a
//! failed transaction are written again with other ids, and no reader sees the first ones.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, Span, SpanBuilder, SpanContext, SpanKind, Status};
use opentelemetry::{Context, trace::TraceContextExt};
use opentelemetry_sdk::trace::Span as SdkSpan;
use opentelemetry_semantic_conventions::attribute;

use super::batches::linked;
use super::{Recorded, Spans, Trace, attributes};
use crate::error::{Error, ErrorKind};
use crate::message::TraceContext;
use crate::worker::source_message::SourceMessage;

/// The spans of one record, until its transaction has ended; nothing where it is not recorded.
#[derive(Debug)]
pub struct CommitSpans(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    recorded: Arc<Recorded>,
    began: Instant,
    commit: SdkSpan,
    send: SdkSpan,
    /// The error of a dead letter.
    code: Option<(ErrorKind, String)>,
}

/// The times of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct TransactionTiming<'e> {
    pub began: Instant,
    /// When every record was acknowledged; None where that was not reached.
    pub delivered: Option<Instant>,
    pub ended: Instant,
    pub failed: Option<&'e Error>,
}

impl CommitSpans {
    #[cfg(test)]
    pub fn is_nothing(&self) -> bool {
        self.0.is_none()
    }

    /// The context that the answer to a reference of `message` carries to `topic`, and the spans
    /// behind it. `error` is that of a dead letter.
    pub fn begin(
        message: &SourceMessage,
        trace: &Trace,
        topic: &Arc<str>,
        (key, payload): (Option<&[u8]>, usize),
        error: Option<&Error>,
    ) -> (TraceContext, Self) {
        let given = || TraceContext::from_headers(&message.original.headers);
        let recorded = match trace {
            Trace::Off => return (given().unwrap_or_else(TraceContext::fresh), Self(None)),
            Trace::Unsampled(context) => return (TraceContext::clone(context), Self(None)),
            Trace::Recorded(recorded) => recorded,
        };
        let began = Instant::now();
        recorded.step(SpanBuilder::from_name("commit wait"), began, None);
        let commit = recorded.begin(SpanBuilder::from_name("commit"), began);
        let around = Context::new().with_remote_span_context(commit.span_context().clone());
        let send = SpanBuilder::from_name(format!("send {topic}"))
            .with_kind(SpanKind::Producer)
            .with_start_time(recorded.clock.time(began))
            .with_attributes(attributes::send(topic, key, payload))
            .start_with_context(&recorded.exported.tracer, &around);
        // The sampler may have dropped this span; the `process` span is recorded.
        let context = if send.is_recording() { send.span_context() } else { &recorded.context };
        let carried = TraceContext::from_span(context, given().and_then(|given| given.tracestate));
        let code = error.map(|error| (error.kind(), error.chain()));
        let recorded = Arc::clone(recorded);
        (carried, Self(Some(Box::new(Open { recorded, began, commit, send, code }))))
    }
}

impl Spans {
    /// A transaction with these records and the offsets of `messages` messages has ended.
    pub fn ended(
        &self,
        sent: impl Iterator<Item = CommitSpans>,
        messages: usize,
        went: TransactionTiming<'_>,
    ) {
        if self.0.is_none() {
            return;
        }
        let open: Vec<Open> = sent.filter_map(|sending| sending.0).map(|open| *open).collect();
        let links = open.iter().map(|open| open.recorded.link()).collect();
        let transaction = self.transaction(links, messages, (went.began, went.ended), went.failed);
        for spans in open {
            spans.end(went, transaction.as_ref());
        }
    }
}

impl Open {
    fn end(self, went: TransactionTiming<'_>, transaction: Option<&SpanContext>) {
        let Self { recorded, began, mut commit, mut send, code } = self;
        let time = |instant: Instant| recorded.clock.time(instant.max(began));
        for Link { span_context, .. } in transaction.map(linked).unwrap_or_default() {
            commit.add_link(span_context, Vec::new());
        }
        if let Some(error) = went.failed {
            attributes::fail(&mut commit, error);
            attributes::fail(&mut send, error);
        }
        send.end_with_timestamp(time(went.delivered.unwrap_or(went.ended)));
        commit.end_with_timestamp(time(went.ended));
        let (outcome, kind, status) = match (went.failed, code) {
            (Some(error), _) => ("stale", Some(error.kind()), Status::error(error.chain())),
            (None, Some((kind, why))) => ("dead_letter", Some(kind), Status::error(why)),
            (None, None) => ("captioned", None, Status::Unset),
        };
        let mut attributes = vec![KeyValue::new(attributes::OUTCOME, outcome)];
        attributes.extend(kind.map(|kind| KeyValue::new(attribute::ERROR_TYPE, kind.code())));
        recorded.finish(went.ended, attributes, status);
    }
}
