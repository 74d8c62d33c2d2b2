//! Logs, OpenTelemetry traces and metrics, and the health that the probes read.
//!
//! [`init`] sets all of it up for a process that serves; [`logs::init`] alone is for the others.
//! Traces and metrics are pushed over gRPC where `OTEL_EXPORTER_OTLP_ENDPOINT` (or the name for
//! one signal) says so; the other standard `OTEL_*` names hold too. The exporters live on the
//! tokio runtime that [`init`] is called in: [`Telemetry::shutdown`] comes before its end.

pub mod health;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod probe;
mod profile;

use std::env;
use std::sync::Arc;

use opentelemetry::{Key, KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::Registry;

use crate::error::{Error, ErrorKind, Result};
pub use health::Health;
use metrics::Meters;
pub use metrics::Metrics;
pub use profile::Profile;

/// What one process tells about itself. Dropping it stops the exporters without waiting for the
/// last of their data; [`Telemetry::shutdown`] waits.
#[derive(Debug)]
pub struct Telemetry {
    meters: Meters,
    tracer: Option<SdkTracerProvider>,
}

impl Telemetry {
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.meters.metrics)
    }

    /// What `/metrics` shows.
    pub fn registry(&self) -> Registry {
        self.meters.registry.clone()
    }

    /// Pushes the last spans and metrics and stops, within a few seconds.
    pub async fn shutdown(self) {
        // The exporters' threads need the runtime's workers: they may not be blocked meanwhile.
        let flush = tokio::task::spawn_blocking(move || {
            self.meters.shutdown();
            if let Some(Err(error)) = self.tracer.as_ref().map(SdkTracerProvider::shutdown) {
                tracing::debug!(%error, "the last spans were not pushed");
            }
        });
        if let Err(error) = flush.await {
            tracing::warn!(%error, "telemetry did not stop cleanly");
        }
    }
}

/// Sets up logs (a subscriber that is already there stays), traces and metrics.
///
/// Called within a tokio runtime. Installs the W3C propagator (`traceparent`, `tracestate`).
///
/// # Errors
/// `ErrorKind::Config`, naming the environment variable that is wrong.
pub fn init() -> Result<Telemetry> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let about = resource();
    let tracer = match pushes("TRACES") {
        false => None,
        true => {
            let exporter = SpanExporter::builder().with_tonic().build().map_err(no_exporter)?;
            let provider = SdkTracerProvider::builder()
                .with_resource(about.clone())
                .with_batch_exporter(exporter)
                .build();
            Some(provider)
        }
    };
    let exporter = match pushes("METRICS") {
        false => None,
        true => Some(MetricExporter::builder().with_tonic().build().map_err(no_exporter)?),
    };
    let meters = Meters::new(about, exporter)?;
    logs::install(logs::Level::Info, tracer.as_ref())?;
    Ok(Telemetry { meters, tracer })
}

/// `service.name` (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, else `fusioncap`) and version.
fn resource() -> Resource {
    let name = Key::from_static_str("service.name");
    let given = Resource::builder().build();
    let is_given =
        given.get(&name).is_some_and(|value| !value.as_str().starts_with("unknown_service"));
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if is_given { builder.build() } else { builder.with_service_name("fusioncap").build() }
}

/// Whether the standard variables ask for `signal` (`TRACES`, `METRICS`) to be pushed.
fn pushes(signal: &str) -> bool {
    pushes_as_set(signal, |name| env::var(name).ok())
}

fn pushes_as_set(signal: &str, variable: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, value: &str| {
        variable(name).is_some_and(|found| found.trim().eq_ignore_ascii_case(value))
    };
    if is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{signal}_EXPORTER"), "none") {
        return false;
    }
    let names =
        ["OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")];
    names.iter().any(|name| variable(name).is_some_and(|value| !value.trim().is_empty()))
}

fn no_exporter(error: ExporterBuildError) -> Error {
    Error::new(ErrorKind::Config, "can't push telemetry as OTEL_EXPORTER_OTLP_ENDPOINT says")
        .with("allowed", "http://host:port of a gRPC collector")
        .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_names_turn_pushing_on_and_off() {
        let asks = |signal: &str, set: &[(&str, &str)]| {
            pushes_as_set(signal, |name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        assert!(!asks("TRACES", &[]));
        assert!(!asks("TRACES", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(asks("TRACES", &[all]) && asks("METRICS", &[all]));
        assert!(!asks("TRACES", &[all, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(!asks("METRICS", &[all, ("OTEL_SDK_DISABLED", "true")]));
        let one = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4317");
        assert!(asks("METRICS", &[one]) && !asks("TRACES", &[one]));
    }

    #[test]
    fn the_service_has_a_name() {
        let about = resource();
        let name = about.get(&Key::from_static_str("service.name")).unwrap();
        assert!(!name.as_str().starts_with("unknown_service"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_starts_and_stops_without_a_collector() {
        let telemetry = init().unwrap();
        telemetry.metrics().captions.add(1, &[]);
        assert!(metrics::encode(&telemetry.registry()).unwrap().contains("captions_total 1"));
        telemetry.shutdown().await;
    }
}
