//! The telemetry of one run: counts, stage times, spans and the metrics of the messaging
//! conventions.

pub mod semconv;
pub mod spans;
pub mod stage;

use std::sync::Arc;
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use opentelemetry_sdk::trace::SdkTracer;

use crate::config::Kafka;
use crate::telemetry::Metrics;
use crate::worker::deadlines::MaxDurations;
use crate::worker::telemetry::semconv::SemanticMetrics;
use crate::worker::telemetry::spans::Spans;
use crate::worker::telemetry::stage::{Stage, Tally, WaitFor};

/// Shared by the stages of one run.
#[derive(Debug)]
pub struct Observer {
    pub metrics: Arc<Metrics>,
    /// Makes the spans of references.
    pub spans: Spans,
    /// Pushed to a collector under the conventions' names.
    pub semconv: SemanticMetrics,
    pub tally: Tally,
    pub max_durations: MaxDurations,
}

impl Observer {
    /// Without a `tracer` no spans are made, without a `meter` nothing is pushed.
    pub fn new(
        metrics: Arc<Metrics>,
        tracer: Option<SdkTracer>,
        meter: Option<Meter>,
        kafka: &Kafka,
    ) -> Self {
        Self {
            metrics,
            spans: Spans::new(tracer, kafka),
            semconv: SemanticMetrics::new(meter, kafka),
            tally: Tally::default(),
            max_durations: MaxDurations::default(),
        }
    }

    /// Adds the time since `since` to what `stage` was busy.
    pub fn busy(&self, stage: Stage, since: Instant) {
        let elapsed = since.elapsed();
        self.tally.busy(stage, elapsed);
        let attributes = [KeyValue::new("stage", stage.name())];
        self.metrics.busy_seconds.add(elapsed.as_secs_f64(), &attributes);
    }

    /// Adds the time since `since` to what `stage` waited for one of its neighbours.
    pub fn waited(&self, stage: Stage, neighbour: WaitFor, since: Instant) {
        let attributes =
            [KeyValue::new("stage", stage.name()), KeyValue::new("waiting_for", neighbour.name())];
        self.metrics.waiting_seconds.add(since.elapsed().as_secs_f64(), &attributes);
    }
}
