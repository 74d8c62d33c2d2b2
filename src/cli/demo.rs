//! `fusioncap demo`: Kafka, S3 and the worker in one process.
//!
//! Results go to stdout, progress and logs to stderr. The exit code is 0 only if every photo has
//! exactly one caption.

use std::path::{Path, PathBuf};

use clap::Args;

use super::output;
use crate::demo::{self, Settings, html};
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::logs::{self, Level};

const MODEL: &str = "models/tiny";
const SAMPLES: &str = "samples";

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Photos and folders of photos to caption [default: samples]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// A real Kafka instead of the embedded one; the demo creates its topics and deletes them
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: Option<String>,
    /// Model bundle [default: models/tiny]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// File for the page of photos and captions
    #[arg(long, value_name = "FILE", default_value = "fusioncap-demo.html")]
    html: PathBuf,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    batch_size: u16,
}

pub fn run(args: DemoArgs) -> Result<()> {
    logs::init(Level::Warn)?;
    let settings = Settings {
        paths: if args.paths.is_empty() { vec![samples()?] } else { args.paths },
        brokers: args.brokers,
        model: args.model.map_or_else(model, Ok)?,
        batch_size: args.batch_size.into(),
    };
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Error::new(ErrorKind::Io, "can't start a runtime").with_source(error))?;
    let report = runtime.block_on(demo::run(&settings))?;
    html::write(&report, &args.html)?;
    output::print(&report.text())?;
    output::print(&format!("page: {}\n", args.html.display()))?;
    if report.is_complete() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Incomplete, "not every photo came back as exactly one caption")
        .with_context("captioned", report.captioned_count())
        .with_context("photos", report.photos.len()))
}

fn model() -> Result<PathBuf> {
    installed(MODEL).ok_or_else(|| {
        Error::new(
            ErrorKind::Bundle,
            "no model bundle: name one with --model, or run this beside models/tiny",
        )
        .with_context("tried", format!("{MODEL} here and beside the executable"))
    })
}

fn samples() -> Result<PathBuf> {
    installed(SAMPLES).ok_or_else(|| {
        Error::new(ErrorKind::Config, "no sample photos: name photos or folders to caption")
            .with_context("tried", format!("{SAMPLES} here and beside the executable"))
    })
}

/// Finds the folder `name` in the current folder or beside the executable.
fn installed(name: &str) -> Option<PathBuf> {
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent).map(|folder| folder.join(name));
    [Some(PathBuf::from(name)), beside].into_iter().flatten().find(|folder| folder.is_dir())
}
