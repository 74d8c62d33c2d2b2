//! Adds the trace to log lines: `trace_id` and `span_id` of the OpenTelemetry context in which the
//! line is written, as members of a JSON line, at the end of a line of text.
//!
//! The names follow OpenTelemetry's note on trace context in other log formats. A collector gets the
//! same context with the log record.

use std::fmt;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The lines of `format`, with the trace.
pub(super) struct Traced<F> {
    pub format: F,
    /// `format` writes JSON objects.
    pub is_json: bool,
}

impl<F, S, N> FormatEvent<S, N> for Traced<F>
where
    F: FormatEvent<S, N>,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let current = Context::current();
        let span = current.span();
        let span = span.span_context();
        if !span.is_valid() {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let (trace, id) = (span.trace_id(), span.span_id());
        let line = line.trim_end();
        match line.strip_suffix('}').filter(|_| self.is_json) {
            Some(object) => {
                writeln!(writer, r#"{object},"trace_id":"{trace}","span_id":"{id}"}}"#)
            }
            None => writeln!(writer, "{line} trace_id={trace} span_id={id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns one line outside a trace and one inside.
    fn written(is_json: bool) -> Vec<String> {
        let lines = Lines::default();
        let sink = lines.clone();
        let layer = fmt::layer().with_writer(move || sink.clone()).with_ansi(false);
        let format = fmt::format().with_ansi(false);
        let subscriber = match is_json {
            true => {
                let format = Traced { format: format.json().flatten_event(true), is_json };
                let layer = layer.json().event_format(format);
                let subscriber = tracing_subscriber::registry().with(layer);
                tracing::subscriber::set_default(subscriber)
            }
            false => {
                let layer = layer.event_format(Traced { format, is_json });
                tracing::subscriber::set_default(tracing_subscriber::registry().with(layer))
            }
        };
        tracing::info!(partition = 3, "outside");
        let (trace, span) = (TraceId::from(0xab), SpanId::from(0xcd));
        let span = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE);
        let guard = Context::new().with_remote_span_context(span).attach();
        tracing::info!(partition = 4, "inside }}");
        drop(guard);
        drop(subscriber);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_json_line_names_its_trace() {
        let lines = written(true);
        let parsed: Vec<serde_json::Value> =
            lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parsed.len(), 2, "{lines:?}");
        assert_eq!((&parsed[0]["partition"], &parsed[0]["trace_id"]), (&3.into(), &().into()));
        assert_eq!(parsed[1]["message"], "inside }");
        assert_eq!(parsed[1]["trace_id"], "000000000000000000000000000000ab");
        assert_eq!(parsed[1]["span_id"], "00000000000000cd");
    }

    #[test]
    fn a_line_of_text_names_its_trace() {
        let lines = written(false);
        assert!(lines[0].ends_with("outside partition=3"), "{lines:?}");
        let trace = " trace_id=000000000000000000000000000000ab span_id=00000000000000cd";
        assert!(lines[1].ends_with(&format!("inside }} partition=4{trace}")), "{lines:?}");
    }
}
