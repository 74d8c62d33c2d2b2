//! Metrics in the OpenMetrics text format, version 1.0.0, which unlike Prometheus's own text has
//! room for exemplars. A scraper chooses by its `Accept` header; Prometheus asks for this one where
//! exemplars are stored.
//!
//! Written from what the `prometheus` crate has gathered, which can write neither.

use std::fmt::{self, Write};
use std::time::SystemTime;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::{Exemplar, Exemplars};

pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text";
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that may end a name, with what OpenMetrics calls them.
const UNITS: [&str; 2] = ["seconds", "bytes"];

/// Whether `accept` asks for OpenMetrics rather than for the plain text: for the type with the
/// greatest `q` (RFC 9110, 12.5.1), the first of several.
pub(super) fn is_wanted(accept: &str) -> bool {
    let mut best: Option<(f32, bool)> = None;
    for part in accept.split(',') {
        let mut fields = part.split(';').map(str::trim);
        let media = fields.next().unwrap_or_default().to_ascii_lowercase();
        let mut quality = 1.0_f32;
        let mut version = "1.0.0";
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => version = value.trim(),
                _ => {}
            }
        }
        let ours = media == MEDIA_TYPE && (version == "1.0.0" || version == "0.0.1");
        let known = ours || matches!(media.as_str(), "text/plain" | "text/*" | "*/*");
        if known && quality > 0.0 && best.is_none_or(|(before, _)| quality > before) {
            best = Some((quality, ours));
        }
    }
    best.is_some_and(|(_, ours)| ours)
}

/// All `families`; `exemplars` go with the histogram called `of`.
pub(super) fn encode(
    families: &[MetricFamily],
    (of, exemplars): (&str, &Exemplars),
) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for family in families {
        let exemplars = (family.name() == of).then_some(exemplars);
        write_family(&mut text, family, exemplars)?;
    }
    text.push_str("# EOF\n");
    Ok(text)
}

fn write_family(
    text: &mut String,
    family: &MetricFamily,
    exemplars: Option<&Exemplars>,
) -> fmt::Result {
    let kind = family.get_field_type();
    let (name, kind_name) = match kind {
        // The family's name is without what its samples end with.
        MetricType::COUNTER => {
            (family.name().strip_suffix("_total").unwrap_or(family.name()), "counter")
        }
        // What is known about the process, in labels.
        MetricType::GAUGE if family.name().ends_with("_info") => {
            (family.name().trim_end_matches("_info"), "info")
        }
        MetricType::GAUGE => (family.name(), "gauge"),
        MetricType::HISTOGRAM => (family.name(), "histogram"),
        // None is made here: OpenTelemetry has neither.
        MetricType::SUMMARY | MetricType::UNTYPED => return Ok(()),
    };
    writeln!(text, "# TYPE {name} {kind_name}")?;
    if let Some(unit) = UNITS.iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
        writeln!(text, "# UNIT {name} {unit}")?;
    }
    if !family.help().is_empty() {
        writeln!(text, "# HELP {name} {}", escaped(family.help()))?;
    }
    for metric in family.get_metric() {
        match kind {
            MetricType::COUNTER => {
                sample(
                    text,
                    &format!("{name}_total"),
                    metric,
                    None,
                    metric.get_counter().get_value(),
                )?;
                text.push('\n');
            }
            MetricType::HISTOGRAM => write_histogram(text, name, metric, exemplars)?,
            _ => {
                sample(text, family.name(), metric, None, metric.get_gauge().get_value())?;
                text.push('\n');
            }
        }
    }
    Ok(())
}

fn write_histogram(
    text: &mut String,
    name: &str,
    metric: &Metric,
    exemplars: Option<&Exemplars>,
) -> fmt::Result {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count();
    let given = histogram.get_bucket().iter();
    let buckets = given.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let finite = buckets.filter(|(bound, _)| bound.is_finite());
    for (bound, cumulative) in finite.chain([(f64::INFINITY, count)]) {
        sample(text, &format!("{name}_bucket"), metric, Some(bound), cumulative as f64)?;
        if let Some(exemplar) = exemplars.and_then(|exemplars| exemplars.of(bound)) {
            write_exemplar(text, exemplar)?;
        }
        text.push('\n');
    }
    sample(text, &format!("{name}_sum"), metric, None, histogram.get_sample_sum())?;
    text.push('\n');
    sample(text, &format!("{name}_count"), metric, None, count as f64)?;
    text.push('\n');
    Ok(())
}

fn write_exemplar(text: &mut String, exemplar: Exemplar) -> fmt::Result {
    let Exemplar { value, trace, span, time } = exemplar;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = since.as_secs_f64();
    write!(text, " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {value} {time:.3}")
}

/// `name{labels} value`, without an end of the line.
fn sample(
    text: &mut String,
    name: &str,
    metric: &Metric,
    bound: Option<f64>,
    value: f64,
) -> fmt::Result {
    let labels = metric.get_label().iter().map(written);
    let bound = bound.map(|bound| match bound.is_finite() {
        // With a point, even where it is a whole number.
        true => format!("le=\"{bound:?}\""),
        false => "le=\"+Inf\"".to_owned(),
    });
    let labels: Vec<String> = labels.chain(bound).collect();
    match labels.is_empty() {
        true => write!(text, "{name} {value}"),
        false => write!(text, "{name}{{{}}} {value}", labels.join(",")),
    }
}

fn written(label: &LabelPair) -> String {
    format!("{}=\"{}\"", label.name(), escaped(label.value()))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_chooses() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in
            [prometheus, "application/openmetrics-text", "*/*;q=0.1, APPLICATION/OpenMetrics-Text"]
        {
            assert!(is_wanted(accept), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.3",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=2.0.0",
            "application/json",
        ] {
            assert!(!is_wanted(accept), "{accept}");
        }
    }
}
