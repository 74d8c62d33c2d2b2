//! Logs, OpenTelemetry traces and metrics, and the health that the probes read.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

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
    /// Bytes fetched from the object store.
    pub fetched_bytes: Counter<u64>,
    /// Images in a batch when it left.
    pub batch_images: Histogram<u64>,
    /// Transactions ended; attribute `outcome`: committed, aborted, fatal.
    pub transactions: Counter<u64>,
    /// Seconds a stage was busy, summed over its threads; attribute `stage`.
    pub busy_seconds: Counter<f64>,
    /// Seconds from poll to commit.
    pub latency_seconds: Histogram<f64>,
    /// References in flight.
    pub in_flight: Gauge<u64>,
    /// 1 while the partitions are paused, else 0.
    pub paused: Gauge<u64>,
    /// Partitions assigned.
    pub partitions: Gauge<u64>,
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
            latency_seconds: meter
                .f64_histogram("fusioncap_latency_seconds")
                .with_description("seconds from poll to commit")
                .build(),
            in_flight: gauge("fusioncap_in_flight", "references in flight"),
            paused: gauge("fusioncap_paused", "1 while the partitions are paused"),
            partitions: gauge("fusioncap_partitions", "partitions assigned"),
        }
    }
}

/// What the probes read.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    failed: AtomicBool,
}

impl Health {
    /// The model is loaded and the consumer has joined its group.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The worker can't go on: the process should be restarted.
    pub fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed)
    }

    pub fn is_live(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }
}
