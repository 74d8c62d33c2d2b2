//! Logs: for people on a terminal, one JSON object a line elsewhere; always on stderr, since
//! stdout is for results.
//!
//! `FUSIONCAP_LOG` holds `tracing-subscriber` filters (`debug`, `fusioncap::worker=trace,warn`),
//! `FUSIONCAP_LOG_FORMAT` is `text` or `json`.

use std::env;
use std::io::{self, IsTerminal};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::error::{Error, ErrorKind, Result};

const FILTER: &str = "FUSIONCAP_LOG";
const FORMAT: &str = "FUSIONCAP_LOG_FORMAT";

/// Others' chatter, at `warn` unless `FUSIONCAP_LOG` names them. rust-rdkafka's consumer calls it
/// an error that a consumer which was closed is closed already when it is dropped.
const QUIET: &str = "librdkafka=warn,rdkafka=warn,rdkafka::consumer::base_consumer=off,ort=warn,\
                     aws_config=warn,aws_runtime=warn,\
                     aws_sdk_s3=warn,aws_smithy_runtime=warn,hyper=warn,hyper_util=warn,h2=warn,\
                     tonic=warn,tower=warn,s3s=warn,s3s_fs=warn,opentelemetry=warn,\
                     opentelemetry_sdk=warn,opentelemetry-otlp=warn";

/// What is logged where `FUSIONCAP_LOG` is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    /// For commands whose output would drown: a progress bar, one line a caption.
    Warn,
}

/// Sets up logs alone; a subscriber that is already there stays.
///
/// # Errors
/// `ErrorKind::Config`, naming the environment variable that is wrong.
pub fn init(level: Level) -> Result<()> {
    install(level, None)
}

/// Sets up logs and, if there is a tracer, the spans that it exports.
pub(super) fn install(level: Level, tracer: Option<&SdkTracerProvider>) -> Result<()> {
    let filter = filter(level, env::var(FILTER).ok().as_deref())?;
    let is_json = is_json(env::var(FORMAT).ok().as_deref(), io::stderr().is_terminal())?;
    // Only our own spans leave the process: the exporter's own would feed on themselves.
    let spans = tracer.map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("fusioncap"))
            .with_filter(Targets::new().with_target("fusioncap", LevelFilter::INFO))
    });
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let lines = match is_json {
        true => lines.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed(),
        false => lines.with_filter(filter).boxed(),
    };
    // Fails only where a subscriber is already set, as in a test or an embedding program.
    let _ = tracing_subscriber::registry().with(spans).with(lines).try_init();
    Ok(())
}

fn filter(level: Level, given: Option<&str>) -> Result<EnvFilter> {
    let wanted = match (given.map(str::trim), level) {
        (Some(text), _) if !text.is_empty() => text,
        (_, Level::Info) => "info",
        (_, Level::Warn) => "warn",
    };
    // The parser's own error names neither the variable nor the part that is wrong.
    EnvFilter::builder().parse(format!("{QUIET},{wanted}")).map_err(|_| {
        Error::new(ErrorKind::Config, format!("{FILTER} can't be '{wanted}'"))
            .with("allowed", "filters such as info, debug or fusioncap::worker=debug,warn")
    })
}

fn is_json(given: Option<&str>, is_terminal: bool) -> Result<bool> {
    match given.map(str::trim) {
        None | Some("") => Ok(!is_terminal),
        Some("json") => Ok(true),
        Some("text") => Ok(false),
        Some(other) => Err(Error::new(ErrorKind::Config, format!("{FORMAT} can't be '{other}'"))
            .with("allowed", "text, json")),
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
    fn the_format_follows_the_terminal_unless_given() {
        assert!(is_json(None, false).unwrap() && !is_json(None, true).unwrap());
        assert!(is_json(Some("json"), true).unwrap() && !is_json(Some("text"), false).unwrap());
        assert_eq!(is_json(Some("xml"), true).unwrap_err().kind(), ErrorKind::Config);
    }
}
