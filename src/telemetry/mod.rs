//! Logs, OpenTelemetry traces and metrics, and the health that the probes read.
//!
//! [`init`] sets all of it up for a worker; other commands call [`logs::init`] alone. Traces,
//! metrics and logs are pushed to `OTEL_EXPORTER_OTLP_ENDPOINT`, or to the endpoint of one signal
//! (`otlp`). The exporters run on the tokio runtime in which [`init`] is called: call
//! [`Telemetry::shutdown`] before the runtime ends.

pub mod health;
pub mod http;
mod lines;
pub mod logs;
pub mod metrics;
mod otlp;
pub mod probe;

use std::sync::Arc;

use opentelemetry::metrics::Meter;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use opentelemetry_semantic_conventions::SCHEMA_URL;
use prometheus::Registry;

use crate::error::Result;
pub use health::Health;
use metrics::Meters;
pub use metrics::Metrics;
use otlp::Otlp;

/// The instruments through which a worker reports.
#[derive(Debug)]
pub struct Instruments {
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    /// Present if spans are exported.
    pub tracer: Option<SdkTracer>,
    /// Present if metrics are pushed.
    pub meter: Option<Meter>,
}

/// The telemetry of one process. Dropping it stops the exporters without waiting for their last
/// data; [`Telemetry::shutdown`] waits.
#[derive(Debug)]
pub struct Telemetry {
    meters: Meters,
    tracer: Option<SdkTracerProvider>,
    logger: Option<SdkLoggerProvider>,
}

impl Telemetry {
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.meters.metrics)
    }

    /// Returns the tracer if a collector is configured.
    pub fn tracer(&self) -> Option<SdkTracer> {
        let scope = InstrumentationScope::builder("fusioncap")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(SCHEMA_URL)
            .build();
        self.tracer.as_ref().map(|provider| provider.tracer_with_scope(scope))
    }

    /// Returns the meter for metrics that only a collector gets, if one is configured.
    pub fn meter(&self) -> Option<Meter> {
        self.meters.pushed()
    }

    /// Returns the metrics that `/metrics` shows.
    pub fn registry(&self) -> Registry {
        self.meters.registry.clone()
    }

    /// Pushes the last spans, metrics and log records and stops. The three signals end side by side,
    /// so that a collector which does not answer costs a few seconds once.
    pub async fn shutdown(self) {
        let Self { meters, tracer, logger } = self;
        // The exporters need the runtime's worker threads, which therefore must not block here.
        let metrics = tokio::task::spawn_blocking(move || meters.shutdown());
        let spans = tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = tracer.as_ref().map(SdkTracerProvider::shutdown) {
                tracing::debug!(%error, "the last spans were not pushed");
            }
        });
        let logs = tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = logger.as_ref().map(SdkLoggerProvider::shutdown) {
                tracing::debug!(%error, "the last log records were not pushed");
            }
        });
        for stopped in [metrics, spans, logs] {
            if let Err(error) = stopped.await {
                tracing::warn!(%error, "telemetry did not stop cleanly");
            }
        }
    }
}

/// Sets up logs (a subscriber that is already there stays), traces and metrics. Called within a
/// tokio runtime.
///
/// # Errors
/// `ErrorKind::Config`, naming the environment variable that is wrong.
pub fn init() -> Result<Telemetry> {
    let about = resource();
    let Otlp { tracer, metrics, logger } = Otlp::from_environment(&about)?;
    let meters = Meters::new(about, metrics)?;
    logs::install(logs::Level::Info, logger.as_ref())?;
    Ok(Telemetry { meters, tracer, logger })
}

/// Returns `service.name` (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, else `fusioncap`) and the
/// version.
fn resource() -> Resource {
    let name = Key::from_static_str("service.name");
    let given = Resource::builder().build();
    let is_given =
        given.get(&name).is_some_and(|value| !value.as_str().starts_with("unknown_service"));
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if is_given { builder.build() } else { builder.with_service_name("fusioncap").build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn it_starts_and_stops_without_a_collector() {
        let telemetry = init().unwrap();
        telemetry.metrics().captions.add(1, &[]);
        assert!(metrics::encode(&telemetry.registry()).unwrap().contains("captions_total 1"));
        telemetry.shutdown().await;
    }
}
