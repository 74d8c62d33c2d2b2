//! `fusioncap caption`: captions images on this machine or in S3, without Kafka.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::images::{self, CaptionedImage, DecodePrefetcher, SCHEME};
use super::output;
use crate::bundle::Bundle;
use crate::config::{Config, DecodeMode, Model, Precision, S3};
use crate::engine::{Caption, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::s3::Store;

#[derive(Debug, Args)]
pub struct CaptionArgs {
    /// Model bundle: a directory
    #[arg(long, value_name = "DIR", default_value = "models/tiny")]
    model: PathBuf,
    /// Variant of the bundle to use (model.precision)
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    precision: Precision,
    /// One JSON object per line (path, caption, score), or text
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_size: u16,
    /// Beam width [default: the bundle's]
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// S3 endpoint for s3:// paths; credentials come from the AWS defaults
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Files, folders and s3://bucket/prefix
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Text,
}

/// One line of the JSON format: a caption, or the reason why there is none.
#[derive(Debug, Serialize)]
struct Line<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caption: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// # Errors
/// `ErrorKind::Config` for wrong arguments; `Io` at the end if an image has no caption.
pub fn run(args: CaptionArgs) -> Result<()> {
    images::runtime()?.block_on(caption(args))
}

async fn caption(args: CaptionArgs) -> Result<()> {
    let (path, runtime) = (args.model.display().to_string(), Config::load_runtime()?);
    let settings = Model { path, num_beams: args.beams, ..Model::default() };
    settings.directory()?;
    let size = usize::from(args.batch_size);
    let bundle = Bundle::choose(&args.model, args.precision, &runtime)?;
    let mut engine = Engine::load(bundle, &runtime, &settings, size)?;
    let s3 = S3 {
        force_path_style: args.endpoint.is_some(),
        endpoint: args.endpoint.clone(),
        ..S3::default()
    };
    let store = match args.paths.iter().any(|path| path.starts_with(SCHEME)) {
        true => Some(Store::connect(&s3).await?),
        false => None,
    };
    let found = images::find(&args.paths, store.as_ref()).await?;
    // On a terminal the captions themselves show the progress.
    let progress = match io::stdout().is_terminal() {
        true => Progress::hidden(),
        false => Progress::new("captioning", "images", found.len() as u64),
    };
    let mut missing = 0;
    let preprocessor = engine.preprocessor().clone().in_mode(DecodeMode::Fast);
    let mut prefetcher = DecodePrefetcher::new(found, preprocessor, store, 2 * size);
    loop {
        let batch = prefetcher.next(size).await;
        if batch.is_empty() {
            break;
        }
        let answers = images::caption(&mut engine, batch)?;
        missing += answers.iter().filter(|(_, outcome)| outcome.is_err()).count();
        progress.advance(answers.len() as u64);
        report(&answers, args.format, &progress)?;
    }
    progress.finish();
    if missing > 0 {
        return Err(Error::new(ErrorKind::Io, "some images have no caption")
            .with_context("images", missing));
    }
    Ok(())
}

/// Prints `answers`. Failures are JSON lines too; in the text format they go to stderr.
fn report(answers: &[CaptionedImage], format: Format, progress: &Progress) -> Result<()> {
    let mut lines = String::new();
    for (path, outcome) in answers {
        match (outcome, format) {
            (_, Format::Json) => lines.push_str(&json(path, outcome)?),
            (Ok(caption), Format::Text) => {
                lines.push_str(&format!("{path}: {} ({:.2})", caption.text, caption.score));
            }
            (Err(error), Format::Text) => {
                progress.note(&format!("{path}: no caption: {}", error.chain()));
                continue;
            }
        }
        lines.push('\n');
    }
    output::print(&lines)
}

fn json(path: &str, outcome: &Result<Caption>) -> Result<String> {
    let caption = outcome.as_ref().ok();
    let record = Line {
        path,
        caption: caption.map(|caption| caption.text.as_str()),
        score: caption.map(|caption| caption.score),
        error: outcome.as_ref().err().map(Error::chain),
    };
    serde_json::to_string(&record)
        .map_err(|error| Error::new(ErrorKind::Internal, "can't write a line").with_source(error))
}
