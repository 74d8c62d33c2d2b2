//! Spans, as they would be exported.

use std::sync::Arc;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};

use super::*;
use crate::error::ErrorKind;
use crate::message::{RawRecord, SourcePosition};
use crate::worker::outcome::Origin;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

/// Keeps what is exported.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

impl Kept {
    fn names(&self) -> Vec<String> {
        self.0.lock().iter().map(|span| span.name.to_string()).collect()
    }

    fn find(&self, name: &str) -> SpanData {
        let spans = self.0.lock();
        let found = spans.iter().find(|span| span.name == name);
        found.cloned().unwrap_or_else(|| panic!("no {name}"))
    }
}

fn attribute_of(span: &SpanData, key: &str) -> String {
    let found = span.attributes.iter().rfind(|entry| entry.key.as_str() == key);
    found.map(|entry| entry.value.to_string()).unwrap_or_default()
}

fn exporting(sampler: Sampler) -> (Spans, Kept, SdkTracerProvider) {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(sampler)))
        .with_simple_exporter(kept.clone())
        .build();
    let kafka: Kafka = serde_yaml_ng::from_str("brokers: localhost:9092").unwrap();
    (Spans::new(Some(provider.tracer("test")), &kafka), kept, provider)
}

fn origin(spans: &Spans, traceparent: Option<&str>) -> Origin {
    let headers = traceparent.map(|value| RawHeader::new("traceparent", value));
    let message = SourceMessage {
        position: SourcePosition { topic: "images.in".into(), partition: 1, offset: 7 },
        epoch: 1,
        original: RawRecord { headers: headers.into_iter().collect(), ..RawRecord::default() },
        polled: Instant::now(),
    };
    let message = Arc::new(message);
    let trace = spans.process(&message, 0, None);
    Origin { message, index: 0, trace }
}

fn send(origin: &Origin) -> (TraceContext, CommitSpans) {
    CommitSpans::begin(&origin.message, &origin.trace, &"captions.out".into(), (None, 10), None)
}

fn went(failed: Option<&Error>) -> TransactionTiming<'_> {
    let now = Instant::now();
    TransactionTiming { began: now, delivered: Some(now), ended: now, failed }
}

#[test]
fn without_an_exporter_nothing_is_made() {
    let spans = Spans::default();
    let given = format!("{PARENT}-01");
    let origin = origin(&spans, Some(&given));
    assert!(matches!(origin.trace, Trace::Off));
    assert!(spans.poll(Instant::now()).is_nothing());
    let (carried, sending) = send(&origin);
    assert_eq!(carried.traceparent, given);
    assert!(sending.is_nothing());
}

#[test]
fn an_unsampled_parent_leaves_no_spans() {
    let (spans, kept, _provider) = exporting(Sampler::AlwaysOn);
    let given = format!("{PARENT}-00");
    let unsampled = origin(&spans, Some(&given));
    assert!(matches!(unsampled.trace, Trace::Off));
    let mut poll = spans.poll(Instant::now());
    poll.message();
    poll.link(&unsampled.trace);
    poll.end();
    let (carried, sending) = send(&unsampled);
    assert_eq!(carried.traceparent, given);
    spans.ended(std::iter::once(sending), 1, went(None));
    assert_eq!(kept.names(), Vec::<String>::new());
}

#[test]
fn a_root_that_our_sampler_drops_is_passed_on_as_unsampled() {
    let (spans, kept, _provider) = exporting(Sampler::AlwaysOff);
    let (carried, sending) = send(&origin(&spans, None));
    assert!(carried.traceparent.ends_with("-00"), "{carried:?}");
    assert!(carried.to_span_context().is_valid() && sending.is_nothing());
    assert_eq!(kept.names(), Vec::<String>::new());
}

#[test]
fn a_failed_transaction_shows_and_its_retry_has_other_spans() {
    let (spans, kept, _provider) = exporting(Sampler::AlwaysOn);
    let given = format!("{PARENT}-01");
    let first = origin(&spans, Some(&given));
    let (carried, sending) = send(&first);
    let error = Error::new(ErrorKind::Kafka, "the transaction failed");
    spans.ended(std::iter::once(sending), 1, went(Some(&error)));
    for name in ["process images.in", "commit", "send captions.out", "commit images.in"] {
        let span = kept.find(name);
        assert!(matches!(span.status, Status::Error { .. }), "{name}");
        assert_eq!(attribute_of(&span, "error.type"), "kafka", "{name}");
    }
    assert_eq!(attribute_of(&kept.find("process images.in"), attributes::OUTCOME), "stale");
    kept.0.lock().clear();

    let again = origin(&spans, Some(&given));
    let (retried, sending) = send(&again);
    assert_ne!(carried, retried);
    spans.ended(std::iter::once(sending), 1, went(None));
    let process = kept.find("process images.in");
    assert_eq!(process.status, Status::Unset);
    assert_eq!(process.parent_span_id.to_string(), "00f067aa0ba902b7");
    let send = kept.find("send captions.out");
    assert_eq!(retried.to_span_context().span_id(), send.span_context.span_id());
    let view = kept.find("commit");
    let transaction = kept.find("commit images.in");
    assert_eq!(view.links.links[0].span_context.span_id(), transaction.span_context.span_id());
}

#[test]
fn work_that_is_let_go_of_ends_its_span() {
    let (spans, kept, _provider) = exporting(Sampler::AlwaysOn);
    let origin = origin(&spans, None);
    origin.trace.step("queue", Instant::now());
    let other = origin.clone();
    drop(origin);
    assert_eq!(kept.names(), ["queue"]);
    drop(other);
    let process = kept.find("process images.in");
    assert_eq!(attribute_of(&process, attributes::OUTCOME), "stale");
    assert!(matches!(process.status, Status::Error { .. }));
}

#[test]
fn a_batch_has_a_bounded_number_of_links() {
    let (spans, kept, _provider) = exporting(Sampler::AlwaysOn);
    let origins: Vec<Origin> = (0..200).map(|_| origin(&spans, None)).collect();
    let now = Instant::now();
    let times = BatchTimes { began: now, encoded: now, writing: now, written: now };
    spans.inferred(origins.iter().map(|origin| &origin.trace), times);
    let batch = kept.find("inference batch");
    assert_eq!((batch.links.links.len(), batch.links.dropped_count), (128, 72));
    assert_eq!(attribute_of(&batch, attributes::BATCH_IMAGES), "200");
    assert_eq!(kept.names().iter().filter(|name| *name == "inference").count(), 200);
}

#[test]
fn times_keep_their_order_whatever_the_wall_clock_does() {
    let instant = Instant::now();
    let clock = Clock::at(instant);
    let later = instant + std::time::Duration::from_millis(3);
    let passed = clock.time(later).duration_since(clock.time(instant)).unwrap();
    assert_eq!(passed.as_millis(), 3);
}
