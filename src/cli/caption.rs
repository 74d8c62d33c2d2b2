//! `fusioncap caption`: captions images on this machine or in S3, without Kafka.

use std::collections::VecDeque;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::bundle::Bundle;
use crate::config::{Limits, Model, Runtime, S3};
use crate::engine::{Caption, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DecodedPixels, Preprocessor};
use crate::s3::{Location, ObjectRef, Store};

/// File names that a folder's images end in.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];

#[derive(Debug, Args)]
pub struct CaptionArgs {
    /// Model bundle: a directory
    #[arg(long, value_name = "DIR", default_value = "models/tiny")]
    model: PathBuf,
    /// JSON objects (path, caption, score), one a line, or text
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Images a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_size: u16,
    /// Beam width; the bundle's own by default
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// S3 endpoint for s3:// paths; credentials come from AWS's usual places
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

/// One line of the JSON format: a caption, or why there is none.
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

/// An image to caption.
#[derive(Clone, Debug)]
enum Image {
    File(PathBuf),
    Object(Location),
}

impl Image {
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Object(location) => format!("s3://{}/{}", location.bucket, location.key),
        }
    }
}

/// # Errors
/// `ErrorKind::Config` for what was asked wrongly; `Io` at the end if an image has no caption.
pub fn run(args: CaptionArgs) -> Result<()> {
    let tokio =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
            Error::new(ErrorKind::Io, "can't start the async runtime").because(error)
        })?;
    tokio.block_on(caption(args))
}

async fn caption(args: CaptionArgs) -> Result<()> {
    let settings =
        Model { path: args.model.display().to_string(), embeddings: false, num_beams: args.beams };
    settings.directory()?;
    let size = usize::from(args.batch_size);
    let mut engine =
        Engine::load(Bundle::open(&args.model)?, &Runtime::default(), &settings, size)?;
    let s3 = S3 {
        force_path_style: args.endpoint.is_some(),
        endpoint: args.endpoint.clone(),
        ..S3::default()
    };
    let store = match args.paths.iter().any(|path| path.starts_with("s3://")) {
        true => Some(Store::connect(&s3).await?),
        false => None,
    };
    let images = find(&args.paths, store.as_ref()).await?;
    let bar = progress(images.len());
    let mut missing = 0;
    let mut ahead = Ahead::new(images, engine.preprocessor().clone(), store, 2 * size);
    loop {
        let batch = ahead.next(size).await;
        if batch.is_empty() {
            break;
        }
        let (lines, failed) = answer(&mut engine, &batch, args.format)?;
        missing += failed;
        bar.inc(batch.len() as u64);
        bar.suspend(|| super::print(&lines))?;
    }
    bar.finish_and_clear();
    if missing > 0 {
        return Err(
            Error::new(ErrorKind::Io, "some images have no caption").with("images", missing)
        );
    }
    Ok(())
}

/// Decoded images ahead of the engine, in the order asked for.
struct Ahead {
    waiting: VecDeque<Image>,
    running: VecDeque<(String, tokio::task::JoinHandle<Result<DecodedPixels>>)>,
    preprocessor: Preprocessor,
    store: Option<Store>,
    depth: usize,
}

impl Ahead {
    fn new(
        images: Vec<Image>,
        preprocessor: Preprocessor,
        store: Option<Store>,
        depth: usize,
    ) -> Self {
        Self { waiting: images.into(), running: VecDeque::new(), preprocessor, store, depth }
    }

    /// The next images, `count` of them while they last.
    async fn next(&mut self, count: usize) -> Vec<(String, Result<DecodedPixels>)> {
        let mut batch = Vec::with_capacity(count);
        while batch.len() < count {
            while self.running.len() < self.depth
                && let Some(image) = self.waiting.pop_front()
            {
                let (preprocessor, store) = (self.preprocessor.clone(), self.store.clone());
                let name = image.name();
                self.running.push_back((name, tokio::spawn(decode(image, preprocessor, store))));
            }
            let Some((name, task)) = self.running.pop_front() else { break };
            let decoded = task.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Internal, "decoding was cut off").because(error))
            });
            batch.push((name, decoded));
        }
        batch
    }
}

async fn decode(
    image: Image,
    preprocessor: Preprocessor,
    store: Option<Store>,
) -> Result<DecodedPixels> {
    let limits = Limits::default();
    let bytes = match (image, store) {
        (Image::File(path), _) => tokio::fs::read(&path)
            .await
            .map_err(|error| Error::new(ErrorKind::Io, "can't read the file").because(error))?,
        (Image::Object(Location { bucket, key }), Some(store)) => {
            let object = ObjectRef { bucket: &bucket, key: &key, version_id: None, etag: None };
            store.get(object, limits.max_object_bytes).await?.bytes
        }
        (Image::Object(_), None) => {
            return Err(Error::new(ErrorKind::Internal, "no S3 client for an s3:// path"));
        }
    };
    let decoding = tokio::task::spawn_blocking(move || preprocessor.decode(&bytes, &limits));
    decoding.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "decoding was cut off").because(error))
    })
}

/// The lines of one batch, and how many of them tell of a failure.
fn answer(
    engine: &mut Engine,
    batch: &[(String, Result<DecodedPixels>)],
    format: Format,
) -> Result<(String, usize)> {
    let pixels: Vec<&[u8]> = batch
        .iter()
        .filter_map(|(_, decoded)| decoded.as_ref().ok().map(|pixels| pixels.rgb.as_slice()))
        .collect();
    let captions = if pixels.is_empty() { Vec::new() } else { engine.caption(&pixels)? };
    let mut remaining = captions.iter();
    let (mut lines, mut failed) = (String::new(), 0);
    for (path, decoded) in batch {
        let outcome = match decoded {
            Ok(_) => Ok(remaining.next()),
            Err(error) => {
                failed += 1;
                Err(error.chain())
            }
        };
        lines.push_str(&line(path, outcome, format)?);
        lines.push('\n');
    }
    Ok((lines, failed))
}

fn line(
    path: &str,
    outcome: std::result::Result<Option<&Caption>, String>,
    format: Format,
) -> Result<String> {
    let (caption, error) = match outcome {
        Ok(caption) => (caption, None),
        Err(reason) => (None, Some(reason)),
    };
    if format == Format::Text {
        return Ok(match (caption, error) {
            (Some(caption), _) => format!("{path}: {} ({:.2})", caption.text, caption.score),
            (None, reason) => format!("{path}: no caption: {}", reason.unwrap_or_default()),
        });
    }
    let record = Line {
        path,
        caption: caption.map(|caption| caption.text.as_str()),
        score: caption.map(|caption| caption.score),
        error,
    };
    serde_json::to_string(&record)
        .map_err(|error| Error::new(ErrorKind::Internal, "can't write a line").because(error))
}

/// Every image that `paths` name: files as given, folders and prefixes searched.
async fn find(paths: &[String], store: Option<&Store>) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for path in paths {
        if let (Some(store), Ok(location)) = (store, path.parse::<Location>()) {
            for entry in store.list(&location.bucket, &location.key).await? {
                if is_image(Path::new(&entry.key)) {
                    let bucket = location.bucket.clone();
                    images.push(Image::Object(Location { bucket, key: entry.key }));
                }
            }
            continue;
        }
        let path = PathBuf::from(path);
        if path.is_dir() {
            search(&path, &mut images)?;
        } else {
            images.push(Image::File(path));
        }
    }
    if images.is_empty() {
        return Err(Error::new(ErrorKind::Config, "PATH names no images")
            .with("value", paths.join(" "))
            .with("allowed", format!("files, or folders with {}", EXTENSIONS.join(", "))));
    }
    Ok(images)
}

/// The images below `folder`, in name order.
fn search(folder: &Path, images: &mut Vec<Image>) -> Result<()> {
    let failed = |error| {
        Error::new(ErrorKind::Io, "can't list").with("path", folder.display()).because(error)
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            search(&path, images)?;
        } else if is_image(&path) {
            images.push(Image::File(path));
        }
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// A bar on a terminal whose lines go elsewhere; nothing where it would be in the way.
fn progress(total: usize) -> ProgressBar {
    let stderr = std::io::stderr();
    if stderr.is_terminal() && !std::io::stdout().is_terminal() {
        return ProgressBar::new(total as u64);
    }
    // Flushed, so that what came before stands above the first line.
    let _ = stderr.lock().flush();
    ProgressBar::hidden()
}
