//! `fusioncap plan`: calculates how many workers a stream of images needs.

use std::ops::RangeInclusive;

use bytesize::ByteSize;
use clap::{ArgGroup, Args};

use super::output;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::measured::{self, Gpu, Model, Precision, Setup};
use crate::plan::{Engine, Source, Workload};

const SECONDS_A_DAY: f64 = 86_400.0;
/// Pixels per byte of a photo as a camera writes it.
const PIXELS_A_BYTE: f64 = 6.0;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("workload").required(true).args(["rate", "day"]))]
pub struct PlanArgs {
    /// Images per second
    #[arg(long, value_name = "N")]
    rate: Option<String>,
    /// Images per day, such as 1e9, spread evenly
    #[arg(long, value_name = "N")]
    day: Option<String>,
    /// Size of an image in the store, such as 2MB
    #[arg(long, value_name = "SIZE", default_value = "2MB")]
    image_size: String,
    /// Pixels of an image, such as 12MP or 4000x3000 [default: 6 per byte]
    #[arg(long, value_name = "PIXELS")]
    pixels: Option<String>,
    /// Images per second of one worker's engine, as you measured it with `cargo bench --bench engine`
    #[arg(long, value_name = "N", conflicts_with = "precision")]
    per_pod_engine: Option<String>,
    /// The model: its input size, and with --gpu the engine's rate where it was measured
    #[arg(long, value_enum, default_value_t = Model::VitB32)]
    model: Model,
    /// GPU of one worker
    #[arg(long, value_enum, default_value_t = Gpu::H100)]
    gpu: Gpu,
    /// Arithmetic of the model
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    precision: Precision,
    /// Cores of one worker
    #[arg(long, value_name = "N", default_value = "16")]
    cores: String,
    /// Milliseconds of one core to decode an image [default: by its pixels]
    #[arg(long, value_name = "MS")]
    decode_ms_per_image: Option<String>,
    /// Images per batch
    #[arg(long, value_name = "N", default_value = "256")]
    batch: String,
    /// Network of one worker, in Gbit/s
    #[arg(long, value_name = "N", default_value = "100")]
    network: String,
    /// Size of a record on the captions topic
    #[arg(long, value_name = "SIZE", default_value = "900B")]
    record_bytes: String,
    /// Part of each worker that stays unused on a usual day
    #[arg(long, value_name = "PART", default_value = "0.3")]
    headroom: String,
    /// Waiting references to drain besides the usual load
    #[arg(long, value_name = "N", default_value = "0")]
    backlog: String,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: PlanArgs) -> Result<()> {
    let plan = args.workload()?.plan();
    if args.json { output::print_json(&plan) } else { output::print(&plan.to_string()) }
}

impl PlanArgs {
    fn workload(&self) -> Result<Workload> {
        let rate = match (&self.rate, &self.day) {
            (_, Some(day)) => number("--day", day, 1.0..=1e12)? / SECONDS_A_DAY,
            (rate, None) => number("--rate", rate.as_deref().unwrap_or_default(), 1e-3..=1e8)?,
        };
        let bytes = size("--image-size", &self.image_size, 1..=10_000_000_000)?;
        let pixels = self.pixels.as_deref().map(pixels).transpose()?;
        let cores = count("--cores", &self.cores, 1..=1024)?;
        let batch = count("--batch", &self.batch, 1..=1024)?;
        let decode = self.decode_ms_per_image.as_deref();
        Ok(Workload {
            rate,
            bytes,
            pixels: pixels.unwrap_or(bytes * PIXELS_A_BYTE),
            engine: self.engine(cores, batch)?,
            batch,
            cores,
            decode_ms: decode
                .map(|text| number("--decode-ms-per-image", text, 1e-3..=1e6))
                .transpose()?,
            network: number("--network", &self.network, 1e-3..=1e4)? * 1e9,
            record_bytes: size("--record-bytes", &self.record_bytes, 1..=100_000_000)?,
            headroom: number("--headroom", &self.headroom, 0.0..=0.95)?,
            backlog: number("--backlog", &self.backlog, 0.0..=1e15)?,
        })
    }

    /// Returns the engine with the given rate, else with the measured one.
    ///
    /// # Errors
    /// `ErrorKind::Config` if there is neither: a plan does not estimate an engine.
    fn engine(&self, cores: u32, batch: u32) -> Result<Engine> {
        let setup = Setup { gpu: self.gpu, model: self.model, precision: self.precision };
        let (rate, source) = match (&self.per_pod_engine, measured::rate(setup, cores, batch)) {
            (Some(rate), _) => (number("--per-pod-engine", rate, 1e-3..=1e7)?, Source::Given),
            (None, Some(rate)) => (rate, Source::Measured),
            (None, None) => {
                let advice = "--per-pod-engine with the images per second that \
                              `cargo bench --bench engine` shows on your machine";
                return Err(Error::new(ErrorKind::Config, "this engine was not measured")
                    .with_context("engine", format!("{setup} on {cores} cores, batch {batch}"))
                    .with_context("measured", measured::list())
                    .with_context("allowed", advice));
            }
        };
        let on_cores = self.gpu == Gpu::None;
        Ok(Engine { rate, source, on_cores, input: self.model.input() })
    }
}

fn wrong(flag: &str, text: &str, allowed: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("{flag} can't be '{text}'"))
        .with_context("allowed", allowed)
}

fn number(flag: &str, text: &str, allowed: RangeInclusive<f64>) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(value) if allowed.contains(&value) => Ok(value),
        _ => {
            let range = format!("a number from {} to {}", allowed.start(), allowed.end());
            Err(wrong(flag, text, range))
        }
    }
}

fn count(flag: &str, text: &str, allowed: RangeInclusive<u32>) -> Result<u32> {
    match text.parse::<u32>() {
        Ok(value) if allowed.contains(&value) => Ok(value),
        _ => {
            let range = format!("an integer from {} to {}", allowed.start(), allowed.end());
            Err(wrong(flag, text, range))
        }
    }
}

fn size(flag: &str, text: &str, allowed: RangeInclusive<u64>) -> Result<f64> {
    match text.parse::<ByteSize>() {
        Ok(size) if allowed.contains(&size.as_u64()) => Ok(size.as_u64() as f64),
        _ => {
            let most = ByteSize::b(*allowed.end()).display().si();
            let range =
                format!("a size from {} B to {most}, such as 500kB or 2MB", allowed.start());
            Err(wrong(flag, text, range))
        }
    }
}

/// Reads `12MP`, or width and height.
fn pixels(text: &str) -> Result<f64> {
    let allowed = "megapixels such as 12MP, or width and height such as 4000x3000; at most 10000MP";
    let refused = || wrong("--pixels", text, allowed);
    let found = match text.split_once('x') {
        Some((width, height)) => {
            let edge = |text: &str| text.parse::<u32>().map(f64::from).map_err(|_| refused());
            edge(width)? * edge(height)?
        }
        None => {
            let megapixels = text.strip_suffix("MP").ok_or_else(refused)?;
            megapixels.trim_end().parse::<f64>().map_err(|_| refused())? * 1e6
        }
    };
    if (1.0..=1e10).contains(&found) { Ok(found) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: PlanArgs,
    }

    fn workload(line: &[&str]) -> Result<Workload> {
        Line::try_parse_from(std::iter::once(&"plan").chain(line)).unwrap().args.workload()
    }

    #[test]
    fn a_billion_images_a_day_are_11574_a_second() {
        let load = workload(&["--day", "1e9"]).unwrap();
        assert!((load.rate - 11_574.074).abs() < 1e-3);
        assert_eq!(load.bytes, 2e6);
        assert_eq!(load.pixels, 12e6);
        assert_eq!((load.engine.rate, load.engine.source), (1_970.0, Source::Measured));
    }

    #[test]
    fn an_engine_that_was_not_measured_needs_its_rate() {
        let unknown: [&[&str]; 4] =
            [&["--gpu=h200"], &["--batch=64"], &["--gpu=none"], &["--precision=fp16"]];
        for flags in unknown {
            let error = workload(&[&["--rate=5"], flags].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags:?}");
            let text = error.to_string();
            assert!(text.contains("h200 vit-b-32 fp32: batch 64;"), "{text}");
            assert!(text.contains("--per-pod-engine"), "{text}");
        }
    }

    #[test]
    fn a_given_rate_holds_for_any_engine() {
        let given = workload(&["--rate=5", "--gpu=none", "--batch=64", "--per-pod-engine=700"]);
        let engine = given.unwrap().engine;
        assert_eq!((engine.rate, engine.source, engine.on_cores), (700.0, Source::Given, true));
    }

    /// `plan` does not read the configuration.
    #[test]
    fn a_plan_knows_the_default_that_it_leaves_out() {
        let limits = crate::config::Limits::default();
        assert_eq!(crate::plan::DEFAULT_BUFFERED_BYTES, limits.max_buffered_bytes);
    }

    #[test]
    fn sizes_and_pixels_are_read_as_people_write_them() {
        for (text, bytes) in [("2MB", 2e6), ("1.5 MB", 1.5e6), ("70kB", 7e4), ("1MiB", 1_048_576.0)]
        {
            assert_eq!(
                workload(&["--rate", "1", "--image-size", text]).unwrap().bytes,
                bytes,
                "{text}"
            );
        }
        for (text, found) in [("12MP", 12e6), ("0.5 MP", 5e5), ("4000x3000", 12e6)] {
            assert_eq!(pixels(text).unwrap(), found, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let cases = [
            ("--rate", "fast", "a number from 0.001"),
            ("--rate", "NaN", "a number from 0.001"),
            ("--rate", "-1", "a number from 0.001"),
            ("--image-size", "two", "such as 500kB"),
            ("--image-size", "0", "a size from 1 B"),
            ("--pixels", "12", "4000x3000"),
            ("--pixels", "0x0", "4000x3000"),
            ("--pixels", "infMP", "4000x3000"),
            ("--per-pod-engine", "0", "a number from 0.001"),
            ("--cores", "1.5", "an integer from 1 to 1024"),
            ("--batch", "2000", "an integer from 1 to 1024"),
            ("--headroom", "1", "a number from 0 to 0.95"),
            ("--network", "inf", "to 10000"),
            ("--decode-ms-per-image", "0", "a number from 0.001"),
            ("--record-bytes", "x", "a size from"),
            ("--backlog", "-5", "a number from 0"),
        ];
        for (flag, value, allowed) in cases {
            let joined = format!("{flag}={value}");
            let line = if flag == "--rate" { vec![&*joined] } else { vec!["--rate=5", &*joined] };
            let error = workload(&line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flag} {value}");
            let text = error.to_string();
            assert!(text.contains(&format!("{flag} can't be '{value}'")), "{text}");
            assert!(text.contains(allowed), "{text}");
        }
    }
}
