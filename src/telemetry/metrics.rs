//! The worker's metrics. They leave the process in two ways: scraped at `/metrics` in Prometheus's
//! text format, and pushed where an OpenTelemetry collector is configured.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

use crate::error::{Error, ErrorKind, Result};

/// Upper bounds of the latency histogram's buckets, in seconds.
const LATENCY_BOUNDARIES: [f64; 13] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The worker's instruments, in OpenTelemetry's API. Their names carry the units.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Messages polled from the input topic.
    pub messages: Counter<u64>,
    /// Skipped event records: they create no object.
    pub skipped: Counter<u64>,
    /// Captions committed.
    pub captions: Counter<u64>,
    /// Dead letters committed; attribute `code`.
    pub dead_letters: Counter<u64>,
    /// Retried fetches.
    pub fetch_retries: Counter<u64>,
    /// Further requests, sent because a fetch was late.
    pub fetch_hedges: Counter<u64>,
    /// Adaptive limit of objects that are read or wait for a decoder.
    pub fetch_concurrency_limit: Gauge<u64>,
    /// Bytes fetched from the object store.
    pub fetched_bytes: Counter<u64>,
    /// References that share the result of another reference to the same object.
    pub coalesced_references: Counter<u64>,
    /// Images in a batch when it is sent to the model.
    pub batch_images: Histogram<u64>,
    /// Transactions ended; attribute `outcome`: committed, aborted, unknown.
    pub transactions: Counter<u64>,
    /// Seconds a stage was busy, summed over its threads; attribute `stage`.
    pub busy_seconds: Counter<f64>,
    /// Seconds a stage waited, summed over its threads; attributes `stage` and
    /// `waiting_for`: `upstream` (no input) or `downstream` (no room for a result).
    pub waiting_seconds: Counter<f64>,
    /// Seconds from poll to commit.
    pub latency_seconds: Histogram<f64>,
    /// References polled and not committed yet.
    pub in_flight_references: Gauge<u64>,
    /// Messages on the assigned partitions that are not committed yet.
    pub consumer_lag_messages: Gauge<u64>,
    /// Seconds to process the consumer lag at the rate of the last minute of work.
    pub consumer_lag_seconds: Gauge<f64>,
    /// 1 for the model in use, 0 for a former one; attributes `digest`, `name`, `version`.
    pub model_info: Gauge<u64>,
    /// 1 while the model under `model.path` can't be loaded and the former one stays in use.
    pub model_reload_failed: Gauge<u64>,
    /// 1 while the partitions are paused, else 0.
    pub partitions_paused: Gauge<u64>,
    /// Partitions assigned.
    pub partitions_assigned: Gauge<u64>,
    /// Polled messages that wait for the schema registry and are not in flight yet.
    pub awaiting_schema_messages: Gauge<u64>,
    /// 1 while the object store's circuit breaker is open, else 0.
    pub circuit_breaker_open: Gauge<u64>,
    /// Time between a limit and the slowest operation so far, in seconds; attribute `deadline`:
    /// transaction, session, max_poll_interval, termination.
    pub deadline_margin_seconds: Gauge<f64>,
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
            fetch_retries: counter("fusioncap_fetch_retries", "retried fetches"),
            fetch_hedges: counter("fusioncap_fetch_hedges", "second requests for slow fetches"),
            fetch_concurrency_limit: gauge(
                "fusioncap_fetch_concurrency_limit",
                "adaptive limit of concurrent fetches",
            ),
            coalesced_references: counter(
                "fusioncap_coalesced_references",
                "references that share the result of another",
            ),
            fetched_bytes: counter("fusioncap_fetched_bytes", "bytes read from the object store"),
            transactions: counter("fusioncap_transactions", "transactions ended, by outcome"),
            batch_images: meter
                .u64_histogram("fusioncap_batch_images")
                .with_description("images in a batch when it is sent to the model")
                .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
                .build(),
            busy_seconds: meter
                .f64_counter("fusioncap_stage_busy_seconds")
                .with_description("seconds a stage was busy, summed over its threads")
                .build(),
            waiting_seconds: meter
                .f64_counter("fusioncap_stage_waiting_seconds")
                .with_description(
                    "seconds a stage waited for upstream or downstream, summed over its threads",
                )
                .build(),
            latency_seconds: meter
                .f64_histogram("fusioncap_latency_seconds")
                .with_description("seconds from poll to commit")
                .with_boundaries(LATENCY_BOUNDARIES.to_vec())
                .build(),
            in_flight_references: gauge(
                "fusioncap_in_flight_references",
                "references polled and not committed yet",
            ),
            consumer_lag_messages: gauge(
                "fusioncap_consumer_lag_messages",
                "consumer lag in messages",
            ),
            consumer_lag_seconds: meter
                .f64_gauge("fusioncap_consumer_lag_seconds")
                .with_description("consumer lag in seconds at the recent processing rate")
                .build(),
            model_info: gauge("fusioncap_model_info", "1 for the model in use, 0 for a former one"),
            model_reload_failed: gauge(
                "fusioncap_model_reload_failed",
                "1 while the stored model can't be loaded",
            ),
            partitions_paused: gauge(
                "fusioncap_partitions_paused",
                "1 while the partitions are paused",
            ),
            partitions_assigned: gauge("fusioncap_partitions_assigned", "partitions assigned"),
            awaiting_schema_messages: gauge(
                "fusioncap_awaiting_schema_messages",
                "messages that wait for their schema",
            ),
            circuit_breaker_open: gauge(
                "fusioncap_circuit_breaker_open",
                "1 while the object store's circuit breaker is open",
            ),
            deadline_margin_seconds: meter
                .f64_gauge("fusioncap_deadline_margin_seconds")
                .with_description(
                    "time between a limit and the slowest operation so far, in seconds",
                )
                .build(),
        }
    }

    /// Creates every series at 0: a rate misses the first step of a series that begins later.
    fn start_at_zero(&self) {
        for counter in [
            &self.messages,
            &self.skipped,
            &self.captions,
            &self.fetch_retries,
            &self.fetch_hedges,
            &self.fetched_bytes,
            &self.coalesced_references,
        ] {
            counter.add(0, &[]);
        }
        self.model_reload_failed.record(0, &[]);
        for kind in ErrorKind::DEAD_LETTERS {
            self.dead_letters.add(0, &[KeyValue::new("code", kind.code())]);
        }
        for outcome in ["committed", "aborted", "unknown"] {
            self.transactions.add(0, &[KeyValue::new("outcome", outcome)]);
        }
    }
}

/// The metrics of one process, with their readers.
#[derive(Debug)]
pub struct Meters {
    pub metrics: Arc<Metrics>,
    /// The metrics that `/metrics` shows.
    pub registry: Registry,
    provider: SdkMeterProvider,
    is_pushed: bool,
}

impl Meters {
    /// Builds metrics for `/metrics` and, if there is one, for `exporter`.
    pub fn new(resource: Resource, exporter: Option<MetricExporter>) -> Result<Self> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "can't set up the metrics").with_source(error)
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

    /// Returns the meter for metrics that are pushed but not shown on `/metrics`, if any are pushed.
    pub(super) fn pushed(&self) -> Option<Meter> {
        self.is_pushed.then(|| self.provider.meter("fusioncap"))
    }

    /// Pushes the remaining data and stops. Blocks for a few seconds at most.
    pub(super) fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last metrics were not pushed");
        }
    }
}

/// Writes `registry` in Prometheus's text format, without the metrics that only a collector gets.
pub(super) fn encode(registry: &Registry) -> Result<String> {
    let mut families = registry.gather();
    families.retain(|family| !family.name().starts_with("messaging_"));
    TextEncoder::new().encode_to_string(&families).map_err(|error| {
        Error::new(ErrorKind::Internal, "can't write the metrics").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records a value with every instrument.
    fn touch(metrics: &Metrics) {
        metrics.start_at_zero();
        metrics.busy_seconds.add(1.0, &[]);
        metrics.waiting_seconds.add(1.0, &[]);
        metrics.batch_images.record(1, &[]);
        metrics.latency_seconds.record(1.0, &[]);
        for gauge in [
            &metrics.fetch_concurrency_limit,
            &metrics.in_flight_references,
            &metrics.awaiting_schema_messages,
            &metrics.model_info,
            &metrics.consumer_lag_messages,
            &metrics.partitions_paused,
            &metrics.partitions_assigned,
            &metrics.circuit_breaker_open,
        ] {
            gauge.record(1, &[]);
        }
        metrics.consumer_lag_seconds.record(1.0, &[]);
        metrics.deadline_margin_seconds.record(1.0, &[]);
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
        assert_eq!(made.matches("\"fusioncap_").count(), kinds, "`touch` forgot one");
    }

    #[test]
    fn counts_come_out_as_prometheus_text() {
        let meters = Meters::new(Resource::builder_empty().build(), None).unwrap();
        let before = encode(&meters.registry).unwrap();
        assert!(before.contains("fusioncap_captions_total 0"), "{before}");
        meters.metrics.captions.add(3, &[]);
        meters.metrics.dead_letters.add(1, &[KeyValue::new("code", "access_denied")]);
        meters.metrics.latency_seconds.record(0.3, &[]);
        meters.metrics.in_flight_references.record(7, &[]);
        let after = encode(&meters.registry).unwrap();
        for line in [
            "fusioncap_captions_total 3",
            "fusioncap_dead_letters_total{code=\"access_denied\"} 1",
            "fusioncap_latency_seconds_bucket{le=\"0.5\"} 1",
            "fusioncap_in_flight_references 7",
            "# TYPE fusioncap_captions_total counter",
        ] {
            assert!(after.contains(line), "{line}\n{after}");
        }
    }
}
