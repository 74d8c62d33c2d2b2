//! A plan as a table. Each figure of a stage says where it comes from.

use std::fmt;

use bytesize::ByteSize;

use super::{Plan, Pod, Source};

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, s3, kafka, worker_failure, backlog, .. } = self;
        let mut line = |name: &str, value: String| writeln!(out, "{name:<22}{value}");
        line("target", format!("{} images/s", number(self.images_per_second)))?;
        line(
            "workers",
            format!(
                "{} at {} images/s each, {:.0} % busy",
                number(self.pods as f64),
                number(self.images_per_second / self.pods as f64),
                self.images_per_second / self.pods as f64 / pod.images_per_second * 100.0
            ),
        )?;
        line(
            "partitions",
            format!("{}, {} per worker", number(self.partitions as f64), self.partitions_per_pod),
        )?;
        line(
            "cores busy",
            format!(
                "{} of {}, {:.1} ms per image",
                number(self.cores_busy.ceil()),
                number(self.pods as f64 * f64::from(pod.cores)),
                pod.core_ms_per_image
            ),
        )?;
        line(
            "S3",
            format!(
                "{} GET/s, {:.1} Gbit/s, at least {} prefix{}",
                number(s3.gets_per_second),
                s3.gigabits_per_second,
                s3.prefixes,
                if s3.prefixes == 1 { "" } else { "es" }
            ),
        )?;
        line(
            "Kafka",
            format!(
                "{:.1} MB/s of references, {:.1} MB/s of captions",
                kafka.in_bytes_per_second / 1e6,
                kafka.out_bytes_per_second / 1e6
            ),
        )?;
        line(
            "one worker",
            format!("{} images/s, bound by {}", number(pod.images_per_second), pod.bottleneck),
        )?;
        for stage in &pod.stages {
            let (name, rate) = (stage.name, number(stage.images_per_second));
            line("", format!("{name:<16}{rate:>9} images/s, {}", source(stage.source)))?;
        }
        line("its settings", settings(pod))?;
        line(
            "its memory",
            format!(
                "{} at most, plus weights and activations of a larger model",
                ByteSize::b(pod.memory_bytes as u64).display().si()
            ),
        )?;
        line(
            "if a worker fails",
            remaining(worker_failure.others_busy, worker_failure.piles_up_per_second),
        )?;
        if backlog.references > 0.0 {
            line(
                "backlog",
                format!(
                    "{} references are drained in {} besides the usual load",
                    number(backlog.references),
                    duration(backlog.seconds)
                ),
            )?;
        }
        writeln!(
            out,
            "The measured figures come from other machines than yours: measure one worker."
        )
    }
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Given => "given",
        Source::Measured => "measured",
        Source::Published => "published by Amazon",
    }
}

/// Names `limits.max_buffered_bytes` only if its default is too low.
fn settings(pod: &Pod) -> String {
    let Pod { batch_size, s3_concurrency, max_in_flight, .. } = pod;
    let always = format!(
        "batch.size {batch_size}, s3.concurrency {s3_concurrency}, \
         limits.max_in_flight {max_in_flight}"
    );
    match pod.max_buffered_bytes {
        Some(bytes) => format!("{always}, limits.max_buffered_bytes {bytes}"),
        None => always,
    }
}

fn remaining(others_busy: Option<f64>, piles_up: f64) -> String {
    let piling = format!("{} references/s pile up until it is replaced", number(piles_up));
    match others_busy {
        Some(busy) if busy <= 1.0 => format!("the others are {:.0} % busy", busy * 100.0),
        Some(_) => format!("the others are full, and {piling}"),
        None => format!("no other worker: {piling}"),
    }
}

/// Writes `value` as a whole number with commas, below 10 with one decimal.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 120.0 => format!("{short:.0} s"),
        medium if medium < 7200.0 => format!("{:.0} min", medium / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        let found = [0.5, 3.0, 12.7, 999.6, 11_574.07, 1e9].map(number);
        assert_eq!(found, ["0.5", "3", "13", "1,000", "11,574", "1,000,000,000"]);
        assert_eq!([59.0, 600.0, 9000.0].map(duration), ["59 s", "10 min", "2.5 h"]);
    }
}
