//! What the worker counts, and how it leaves the process: scraped as `/metrics` (Prometheus's text
//! or OpenMetrics) and, where an OpenTelemetry collector is configured, pushed.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider};
use opentelemetry::trace::SpanContext;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

use super::exemplars::Exemplars;
use super::openmetrics;
use crate::error::{Error, ErrorKind, Result};

/// The histogram that has exemplars.
const LATENCY: &str = "fusioncap_latency_seconds";
/// Upper bounds of the latency histogram's buckets, in seconds.
const LATENCY_BOUNDARIES: [f64; 13] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What the worker counts, by OpenTelemetry's API. Units stand in the instruments' names.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Messages polled from the input topic.
    pub messages: Counter<u64>,
    /// Event records that name no object creation, skipped.
    pub skipped: Counter<u64>,
    /// Captions committed.
    pub captions: Counter<u64>,
    /// Dead letters committed; attribute `code`.
    pub dead_letters: Counter<u64>,
    /// Fetches tried again.
    pub fetch_retries: Counter<u64>,
    /// Fetches that were late and asked for a second time.
    pub fetch_hedges: Counter<u64>,
    /// Objects that may be read or wait for a decoder at once.
    pub fetch_depth: Gauge<u64>,
    /// Bytes fetched from the object store.
    pub fetched_bytes: Counter<u64>,
    /// References that another's work answered.
    pub repeats: Counter<u64>,
    /// Images in a batch when it left.
    pub batch_images: Histogram<u64>,
    /// Transactions ended; attribute `outcome`: committed, aborted, fatal.
    pub transactions: Counter<u64>,
    /// Seconds a stage was busy, summed over its threads; attribute `stage`.
    pub busy_seconds: Counter<f64>,
    /// Seconds a stage waited, summed over its threads; attributes `stage` and `for`: `input`
    /// (the stage before is slower) or `output` (the one behind is).
    pub waiting_seconds: Counter<f64>,
    /// Seconds from poll to commit.
    latency_seconds: Histogram<f64>,
    latencies: Arc<Exemplars>,
    /// References in flight.
    pub in_flight: Gauge<u64>,
    /// Messages of the worker's partitions that are not answered yet.
    pub backlog_messages: Gauge<u64>,
    /// Seconds that as many messages take at the pace of the last minute of work.
    pub backlog_seconds: Gauge<f64>,
    /// 1 for the model in use, 0 for one that was; attributes `digest`, `name`, `version`.
    pub model_info: Gauge<u64>,
    /// 1 while what is stored under `model.path` was refused and an older model goes on.
    pub model_refused: Gauge<u64>,
    /// 1 while the partitions are paused, else 0.
    pub paused: Gauge<u64>,
    /// Partitions assigned.
    pub partitions: Gauge<u64>,
    /// Messages polled that wait for the schema registry; not in flight yet.
    pub awaiting_schema: Gauge<u64>,
    /// 1 while the object store is taken for down, else 0.
    pub store_down: Gauge<u64>,
    /// Seconds left below a time limit, by the slowest so far; attribute `deadline`: transaction,
    /// session, max_poll_interval, termination.
    pub slack_seconds: Gauge<f64>,
}

impl Metrics {
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, about: &'static str| {
            meter.u64_counter(name).with_description(about).build()
        };
        let gauge = |name: &'static str, about: &'static str| {
            meter.u64_gauge(name).with_description(about).build()
        };
        Self {
            messages: counter("fusioncap_messages", "messages polled from the input topic"),
            skipped: counter("fusioncap_skipped_events", "event records that create no object"),
            captions: counter("fusioncap_captions", "captions committed"),
            dead_letters: counter("fusioncap_dead_letters", "dead letters committed, by code"),
            fetch_retries: counter("fusioncap_fetch_retries", "fetches tried again"),
            fetch_hedges: counter("fusioncap_fetch_hedges", "late fetches asked for twice"),
            fetch_depth: gauge("fusioncap_fetch_depth", "objects that may be read at once"),
            repeats: counter("fusioncap_repeats", "references answered by another's work"),
            fetched_bytes: counter("fusioncap_fetched_bytes", "bytes fetched from S3"),
            transactions: counter("fusioncap_transactions", "transactions ended, by outcome"),
            batch_images: meter
                .u64_histogram("fusioncap_batch_images")
                .with_description("images in a batch when it left")
                .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
                .build(),
            busy_seconds: meter
                .f64_counter("fusioncap_stage_busy_seconds")
                .with_description("seconds a stage was busy, summed over its threads")
                .build(),
            waiting_seconds: meter
                .f64_counter("fusioncap_stage_waiting_seconds")
                .with_description("seconds a stage waited, summed over its threads, and for what")
                .build(),
            latency_seconds: meter
                .f64_histogram("fusioncap_latency_seconds")
                .with_description("seconds from poll to commit")
                .with_boundaries(LATENCY_BOUNDARIES.to_vec())
                .build(),
            latencies: Arc::new(Exemplars::new(&LATENCY_BOUNDARIES)),
            in_flight: gauge("fusioncap_in_flight", "references in flight"),
            backlog_messages: gauge("fusioncap_backlog_messages", "messages not answered yet"),
            backlog_seconds: meter
                .f64_gauge("fusioncap_backlog_seconds")
                .with_description("seconds that the backlog takes at the pace of late")
                .build(),
            model_info: gauge("fusioncap_model_info", "1 for the model in use, 0 for one that was"),
            model_refused: gauge("fusioncap_model_refused", "1 while a changed model is refused"),
            paused: gauge("fusioncap_paused", "1 while the partitions are paused"),
            partitions: gauge("fusioncap_partitions", "partitions assigned"),
            awaiting_schema: gauge("fusioncap_awaiting_schema", "messages without their schema"),
            store_down: gauge("fusioncap_store_down", "1 while the object store is down"),
            slack_seconds: meter
                .f64_gauge("fusioncap_slack_seconds")
                .with_description("seconds left below a time limit, by the slowest so far")
                .build(),
        }
    }

    /// Notes the seconds from poll to commit of one reference, and its span where that is recorded.
    pub fn latency(&self, seconds: f64, span: Option<&SpanContext>) {
        self.latency_seconds.record(seconds, &[]);
        if let Some(span) = span {
            self.latencies.note(seconds, span);
        }
    }

    /// Shows every count from the start: a rate over a series that begins late misses its first
    /// step.
    fn start_at_zero(&self) {
        for counter in [
            &self.messages,
            &self.skipped,
            &self.captions,
            &self.fetch_retries,
            &self.fetch_hedges,
            &self.fetched_bytes,
            &self.repeats,
        ] {
            counter.add(0, &[]);
        }
        self.model_refused.record(0, &[]);
        for kind in ErrorKind::DEAD_LETTERS {
            self.dead_letters.add(0, &[KeyValue::new("code", kind.code())]);
        }
        for outcome in ["committed", "aborted", "fatal"] {
            self.transactions.add(0, &[KeyValue::new("outcome", outcome)]);
        }
    }
}

/// The metrics of one process and where they are read.
#[derive(Debug)]
pub struct Meters {
    pub metrics: Arc<Metrics>,
    /// What `/metrics` shows.
    pub registry: Registry,
    provider: SdkMeterProvider,
    is_pushed: bool,
}

impl Meters {
    /// Counts for `/metrics` and, if there is one, for `exporter`.
    pub fn new(resource: Resource, exporter: Option<MetricExporter>) -> Result<Self> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "can't set up the metrics").because(error)
            })?;
        let is_pushed = exporter.is_some();
        let mut builder = SdkMeterProvider::builder().with_resource(resource).with_reader(reader);
        if let Some(otlp) = exporter {
            builder = builder.with_periodic_exporter(otlp);
        }
        let provider = builder.build();
        let metrics = Metrics::new(&provider.meter("fusioncap"));
        metrics.start_at_zero();
        Ok(Self { metrics: Arc::new(metrics), registry, provider, is_pushed })
    }

    /// For what is pushed and not shown on `/metrics`, if anything is pushed.
    pub(super) fn pushed(&self) -> Option<Meter> {
        self.is_pushed.then(|| self.provider.meter("fusioncap"))
    }

    /// Pushes what was not pushed yet and stops. Blocks for a few seconds at worst.
    pub(super) fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last metrics were not pushed");
        }
    }
}

/// What `/metrics` shows of `registry`: not what is for a collector alone.
fn shown(registry: &Registry) -> Vec<MetricFamily> {
    let mut families = registry.gather();
    families.retain(|family| !family.name().starts_with("messaging_"));
    families
}

/// Everything in `registry`, in the OpenMetrics text format, with the exemplars of `metrics`.
pub(super) fn encode_openmetrics(registry: &Registry, metrics: &Metrics) -> Result<String> {
    openmetrics::encode(&shown(registry), (LATENCY, &metrics.latencies))
        .map_err(|error| Error::new(ErrorKind::Internal, "can't write the metrics").because(error))
}

/// Everything in `registry`, in Prometheus's text format.
pub(super) fn encode(registry: &Registry) -> Result<String> {
    TextEncoder::new()
        .encode_to_string(&shown(registry))
        .map_err(|error| Error::new(ErrorKind::Internal, "can't write the metrics").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something in every instrument.
    fn touch(metrics: &Metrics) {
        metrics.start_at_zero();
        metrics.busy_seconds.add(1.0, &[]);
        metrics.waiting_seconds.add(1.0, &[]);
        metrics.batch_images.record(1, &[]);
        metrics.latency(1.0, None);
        for gauge in [
            &metrics.fetch_depth,
            &metrics.in_flight,
            &metrics.awaiting_schema,
            &metrics.model_info,
            &metrics.backlog_messages,
            &metrics.paused,
            &metrics.partitions,
            &metrics.store_down,
        ] {
            gauge.record(1, &[]);
        }
        metrics.backlog_seconds.record(1.0, &[]);
        metrics.slack_seconds.record(1.0, &[]);
    }

    #[test]
    fn the_page_lists_every_metric() {
        let meters = Meters::new(Resource::builder_empty().build(), None).unwrap();
        touch(&meters.metrics);
        let text = encode(&meters.registry).unwrap();
        let page = include_str!("../../docs/telemetry.md");
        let mut kinds = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE fusioncap_")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let row = format!("\n| `fusioncap_{name}` | {kind} | ");
            assert!(page.contains(&row), "docs/telemetry.md lacks {row}");
            kinds += 1;
        }
        assert_eq!(page.matches("\n| `fusioncap_").count(), kinds, "docs/telemetry.md has more");
        let made = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        assert_eq!(made.matches("(\"fusioncap_").count(), kinds, "`touch` forgot one");
    }

    #[test]
    fn counts_come_out_as_prometheus_text() {
        let meters = Meters::new(Resource::builder_empty().build(), None).unwrap();
        let before = encode(&meters.registry).unwrap();
        assert!(before.contains("fusioncap_captions_total 0"), "{before}");
        meters.metrics.captions.add(3, &[]);
        meters.metrics.dead_letters.add(1, &[KeyValue::new("code", "access_denied")]);
        meters.metrics.latency(0.3, None);
        meters.metrics.in_flight.record(7, &[]);
        let after = encode(&meters.registry).unwrap();
        for line in [
            "fusioncap_captions_total 3",
            "fusioncap_dead_letters_total{code=\"access_denied\"} 1",
            "fusioncap_latency_seconds_bucket{le=\"0.5\"} 1",
            "fusioncap_in_flight 7",
            "# TYPE fusioncap_captions_total counter",
        ] {
            assert!(after.contains(line), "{line}\n{after}");
        }
    }
}
