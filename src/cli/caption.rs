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

const SCHEME: &str = "s3://";
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
    // Files are read and decoded on the blocking threads: more than cores would only cost memory.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(cores)
        .enable_all()
        .build()
        .map_err(|error| {
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
    let store = match args.paths.iter().any(|path| path.starts_with(SCHEME)) {
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
        let answers = answer(&mut engine, batch)?;
        missing += answers.iter().filter(|(_, outcome)| outcome.is_err()).count();
        bar.inc(answers.len() as u64);
        bar.suspend(|| report(&answers, args.format))?;
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

/// What became of an image, by the name it was asked for with.
type Answer = (String, Result<Caption>);

/// Captions what was decoded; the order stays.
fn answer(engine: &mut Engine, batch: Vec<(String, Result<DecodedPixels>)>) -> Result<Vec<Answer>> {
    let decoded = batch.iter().filter_map(|(_, decoded)| decoded.as_ref().ok());
    let pixels: Vec<&[u8]> = decoded.map(|image| image.rgb.as_slice()).collect();
    let captions = if pixels.is_empty() { Vec::new() } else { engine.caption(&pixels)? };
    let mut remaining = captions.into_iter();
    let mut next =
        || remaining.next().ok_or_else(|| Error::new(ErrorKind::Internal, "an image was left out"));
    Ok(batch.into_iter().map(|(path, decoded)| (path, decoded.and_then(|_| next()))).collect())
}

/// JSON lines hold the failures too; of text, they go to stderr.
fn report(answers: &[Answer], format: Format) -> Result<()> {
    let mut lines = String::new();
    for (path, outcome) in answers {
        match (outcome, format) {
            (_, Format::Json) => lines.push_str(&json(path, outcome)?),
            (Ok(caption), Format::Text) => {
                lines.push_str(&format!("{path}: {} ({:.2})", caption.text, caption.score));
            }
            (Err(error), Format::Text) => {
                // When stderr is closed, the exit code is all that is left to say.
                let _ = writeln!(std::io::stderr(), "{path}: no caption: {}", error.chain());
                continue;
            }
        }
        lines.push('\n');
    }
    super::print(&lines)
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
        .map_err(|error| Error::new(ErrorKind::Internal, "can't write a line").because(error))
}

/// Every image that `paths` name: files as given, folders and prefixes searched.
async fn find(paths: &[String], store: Option<&Store>) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for path in paths {
        if let Some(store) = store.filter(|_| path.starts_with(SCHEME)) {
            let location: Location = path.parse().map_err(|error| {
                Error::new(ErrorKind::Config, "PATH is wrong").with("value", path).because(error)
            })?;
            for entry in store.list(&location.bucket, &location.key).await? {
                // What is named in full needs no extension.
                if entry.key == location.key || is_image(Path::new(&entry.key)) {
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
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A link to a folder is no folder here: links can go in circles.
        found.push((entry.path(), entry.file_type().map_err(failed)?.is_dir()));
    }
    found.sort();
    for (path, is_folder) in found {
        if is_folder {
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
