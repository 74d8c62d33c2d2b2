//! Logs on stderr: text on a terminal, elsewhere one JSON object per line. stdout is for results. A
//! configured collector gets the same events.
//!
//! `FUSIONCAP_LOG` holds `tracing-subscriber` filters (`debug`, `fusioncap::worker=trace,warn`),
//! `FUSIONCAP_LOG_FORMAT` is `text` or `json`.

use std::env;
use std::io::{self, IsTerminal};

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing::Metadata;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::lines::Traced;
use crate::error::{Error, ErrorKind, Result};

const FILTER: &str = "FUSIONCAP_LOG";
const FORMAT: &str = "FUSIONCAP_LOG_FORMAT";

/// Filters for the logs of dependencies: `warn`, unless `FUSIONCAP_LOG` names them. rust-rdkafka logs an
/// error when a closed consumer is dropped, which is not one.
const QUIET: &str = "librdkafka=warn,rdkafka=warn,rdkafka::consumer::base_consumer=off,ort=warn,\
                     aws_config=warn,aws_runtime=warn,\
                     aws_sdk_s3=warn,aws_smithy_runtime=warn,hyper=warn,hyper_util=warn,h2=warn,\
                     tonic=warn,tower=warn,opentelemetry=warn,\
                     opentelemetry_sdk=warn,opentelemetry-otlp=warn,reqwest=warn";

/// The crates that push logs: pushing their own events would never end.
const EXPORTERS: [&str; 7] =
    ["opentelemetry", "tonic", "h2", "hyper", "hyper_util", "tower", "reqwest"];

/// The log level if `FUSIONCAP_LOG` is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    /// For commands with a progress bar, or one line per caption.
    Warn,
}

/// Sets up logs alone; keeps a subscriber that is set already.
///
/// # Errors
/// `ErrorKind::Config`, naming the environment variable that is wrong.
pub fn init(level: Level) -> Result<()> {
    install(level, None)
}

/// Sets up logs, also for a collector if there is a `logger`.
pub(super) fn install(level: Level, logger: Option<&SdkLoggerProvider>) -> Result<()> {
    let given = env::var(FILTER).ok();
    let wanted = || filter(level, given.as_deref());
    let is_json = is_json(env::var(FORMAT).ok().as_deref(), io::stderr().is_terminal())?;
    let pushed = match logger {
        None => None,
        Some(provider) => Some(
            OpenTelemetryTracingBridge::new(provider)
                .with_filter(filter_fn(may_be_pushed))
                .with_filter(wanted()?),
        ),
    };
    let has_colours = io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(has_colours);
    let format = fmt::format().with_ansi(has_colours);
    let lines = match is_json {
        true => {
            let format = format.json().flatten_event(true).with_span_list(false);
            let lines = lines.json().event_format(Traced { format, is_json });
            lines.with_filter(wanted()?).boxed()
        }
        false => lines.event_format(Traced { format, is_json }).with_filter(wanted()?).boxed(),
    };
    // Fails only if a subscriber is set already, as in a test or an embedding program.
    let _ = tracing_subscriber::registry().with(pushed).with(lines).try_init();
    Ok(())
}

fn may_be_pushed(event: &Metadata<'_>) -> bool {
    is_pushed(event.target())
}

fn is_pushed(target: &str) -> bool {
    let is_of = |name: &&str| {
        let rest = target.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '-', '_']))
    };
    !EXPORTERS.iter().any(is_of)
}

fn filter(level: Level, given: Option<&str>) -> Result<EnvFilter> {
    let wanted = match (given.map(str::trim), level) {
        (Some(text), _) if !text.is_empty() => text,
        (_, Level::Info) => "info",
        (_, Level::Warn) => "warn",
    };
    // The parser's error names neither the variable nor the wrong part.
    EnvFilter::builder().parse(format!("{QUIET},{wanted}")).map_err(|_| {
        Error::new(ErrorKind::Config, format!("{FILTER} can't be '{wanted}'"))
            .with_context("allowed", "filters such as info, debug or fusioncap::worker=debug,warn")
    })
}

fn is_json(given: Option<&str>, is_terminal: bool) -> Result<bool> {
    match given.map(str::trim) {
        None | Some("") => Ok(!is_terminal),
        Some("json") => Ok(true),
        Some("text") => Ok(false),
        Some(other) => Err(Error::new(ErrorKind::Config, format!("{FORMAT} can't be '{other}'"))
            .with_context("allowed", "text, json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_keeps_others_quiet_unless_named() {
        let usual = filter(Level::Info, None).unwrap().to_string();
        assert!(usual.contains("librdkafka=warn") && usual.contains("info"), "{usual}");
        let named = filter(Level::Info, Some("librdkafka=debug,trace")).unwrap().to_string();
        assert!(
            named.contains("librdkafka=debug") && !named.contains("librdkafka=warn"),
            "{named}"
        );
        let error = filter(Level::Info, Some("a=b=c")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with("FUSIONCAP_LOG can't be 'a=b=c'"));
    }

    #[test]
    fn logs_of_the_exporters_are_not_exported() {
        for target in ["opentelemetry_sdk", "opentelemetry-otlp", "h2::codec", "hyper_util::client"]
        {
            assert!(!is_pushed(target), "{target}");
        }
        for target in ["fusioncap::worker::publish", "librdkafka", "h2o", "ort"] {
            assert!(is_pushed(target), "{target}");
        }
    }

    #[test]
    fn the_format_follows_the_terminal_unless_given() {
        assert!(is_json(None, false).unwrap() && !is_json(None, true).unwrap());
        assert!(is_json(Some("json"), true).unwrap() && !is_json(Some("text"), false).unwrap());
        assert_eq!(is_json(Some("xml"), true).unwrap_err().kind(), ErrorKind::Config);
    }
}
