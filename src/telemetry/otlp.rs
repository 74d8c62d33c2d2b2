//! The exporters to an OpenTelemetry collector, one per signal, as the standard `OTEL_*` variables
//! configure them. Without an endpoint nothing is built.
//!
//! OpenTelemetry's crates read the other variables themselves (headers, timeouts, samplers, limits,
//! batches). They replace some misspelt values by defaults: those values are refused here.

use std::env;

use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::error::{Error, ErrorKind, Result};

/// The exporters of one process.
#[derive(Debug, Default)]
pub(super) struct Otlp {
    pub tracer: Option<SdkTracerProvider>,
    pub metrics: Option<MetricExporter>,
    pub logger: Option<SdkLoggerProvider>,
}

/// Protocol of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

impl Otlp {
    /// Builds the exporters that the environment asks for. `resource` describes the process.
    ///
    /// # Errors
    /// `ErrorKind::Config`, naming the wrong variable.
    pub fn from_environment(resource: &Resource) -> Result<Self> {
        let variable = |name: &str| env::var(name).ok();
        let mut otlp = Self::default();
        if let Some(protocol) = pushes("TRACES", variable)? {
            check_sampler(variable)?;
            let builder = SpanExporter::builder();
            let exporter = match protocol {
                Protocol::Grpc => builder.with_tonic().build(),
                Protocol::Http => builder.with_http().build(),
            };
            let provider = SdkTracerProvider::builder().with_resource(resource.clone());
            let exporter = exporter.map_err(no_exporter)?;
            otlp.tracer = Some(provider.with_batch_exporter(exporter).build());
        }
        if let Some(protocol) = pushes("METRICS", variable)? {
            let builder = MetricExporter::builder();
            let exporter = match protocol {
                Protocol::Grpc => builder.with_tonic().build(),
                Protocol::Http => builder.with_http().build(),
            };
            otlp.metrics = Some(exporter.map_err(no_exporter)?);
        }
        if let Some(protocol) = pushes("LOGS", variable)? {
            let builder = LogExporter::builder();
            let exporter = match protocol {
                Protocol::Grpc => builder.with_tonic().build(),
                Protocol::Http => builder.with_http().build(),
            };
            let provider = SdkLoggerProvider::builder().with_resource(resource.clone());
            let exporter = exporter.map_err(no_exporter)?;
            otlp.logger = Some(provider.with_batch_exporter(exporter).build());
        }
        Ok(otlp)
    }
}

/// Returns the protocol by which `signal` (`TRACES`, `METRICS`, `LOGS`) is pushed, or nothing if the
/// standard variables do not ask for it.
fn pushes(signal: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Protocol>> {
    let is = |name: &str, value: &str| {
        variable(name).is_some_and(|found| found.trim().eq_ignore_ascii_case(value))
    };
    if is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{signal}_EXPORTER"), "none") {
        return Ok(None);
    }
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let own = |what: &str| format!("OTEL_EXPORTER_OTLP_{signal}_{what}");
    if set("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| set(&own("ENDPOINT"))).is_none() {
        return Ok(None);
    }
    for name in [own("PROTOCOL"), "OTEL_EXPORTER_OTLP_PROTOCOL".to_owned()] {
        return match set(&name).as_deref().map(str::trim) {
            None => continue,
            Some("grpc") => Ok(Some(Protocol::Grpc)),
            Some("http/protobuf") => Ok(Some(Protocol::Http)),
            Some(other) => Err(Error::new(ErrorKind::Config, format!("{name} can't be '{other}'"))
                .with_context("allowed", "grpc, http/protobuf")),
        };
    }
    Ok(Some(Protocol::Grpc))
}

/// Refuses unknown samplers, with which the SDK would sample everything.
fn check_sampler(variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let wrong = |name: &str, value: &str, allowed: &str| {
        Err(Error::new(ErrorKind::Config, format!("{name} can't be '{value}'"))
            .with_context("allowed", allowed))
    };
    match variable(SAMPLER).as_deref() {
        None
        | Some("always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off") => {
            Ok(())
        }
        Some("traceidratio" | "parentbased_traceidratio") => {
            let ratio = variable(ARGUMENT).unwrap_or_default();
            match ratio.parse::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
                _ => wrong(ARGUMENT, &ratio, "a number from 0 to 1"),
            }
        }
        Some(other) => wrong(
            SAMPLER,
            other,
            "always_on, always_off, traceidratio, each also with parentbased_ before it",
        ),
    }
}

fn no_exporter(error: ExporterBuildError) -> Error {
    Error::new(ErrorKind::Config, "can't push telemetry to OTEL_EXPORTER_OTLP_ENDPOINT")
        .with_context("allowed", "http://host:port of a collector")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| {
            set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn the_standard_names_turn_pushing_on_and_off() {
        let asks =
            |signal: &str, set: &[(&str, &str)]| pushes(signal, with(set)).unwrap().is_some();
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        assert!(!asks("TRACES", &[]));
        assert!(!asks("TRACES", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(asks("TRACES", &[all]) && asks("METRICS", &[all]) && asks("LOGS", &[all]));
        assert!(!asks("TRACES", &[all, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(!asks("LOGS", &[all, ("OTEL_LOGS_EXPORTER", "none")]));
        assert!(!asks("METRICS", &[all, ("OTEL_SDK_DISABLED", "true")]));
        let one = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4317");
        assert!(asks("METRICS", &[one]) && !asks("TRACES", &[one]));
    }

    #[test]
    fn a_protocol_holds_for_all_or_for_one_signal() {
        let asked = |set: &[(&str, &str)]| {
            let all = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")];
            let set: Vec<(&str, &str)> = all.iter().chain(set).copied().collect();
            pushes("TRACES", with(&set))
        };
        let (general, own) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL");
        assert_eq!(asked(&[]).unwrap(), Some(Protocol::Grpc));
        assert_eq!(asked(&[(general, "http/protobuf")]).unwrap(), Some(Protocol::Http));
        let both = [(general, "http/protobuf"), (own, "grpc")];
        assert_eq!(asked(&both).unwrap(), Some(Protocol::Grpc));
        let error = asked(&[(general, "http/json")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with("OTEL_EXPORTER_OTLP_PROTOCOL can't be 'http/json'"));
    }

    #[test]
    fn a_sampler_that_does_not_exist_is_refused() {
        let (sampler, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        assert!(check_sampler(with(&[])).is_ok());
        assert!(check_sampler(with(&[(sampler, "parentbased_always_off")])).is_ok());
        let ratio = (sampler, "parentbased_traceidratio");
        assert!(check_sampler(with(&[ratio, (argument, "0.05")])).is_ok());
        for wrong in [&[ratio][..], &[ratio, (argument, "5 %")], &[(sampler, "ratio")]] {
            assert_eq!(check_sampler(with(wrong)).unwrap_err().kind(), ErrorKind::Config);
        }
    }
}
