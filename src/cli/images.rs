//! Images on this machine or in S3, decoded ahead of the engine: shared by the subcommands that
//! caption without Kafka.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Limits;
use crate::engine::{Caption, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DecodedPixels, Preprocessor};
use crate::s3::{Location, ObjectRef, Store};

pub const SCHEME: &str = "s3://";
/// Extensions of the images in a folder.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];

/// An image to caption.
#[derive(Clone, Debug)]
pub enum Image {
    File(PathBuf),
    Object(Location),
}

impl Image {
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Object(location) => format!("s3://{}/{}", location.bucket, location.key),
        }
    }
}

/// Decodes images ahead of the engine, in the given order.
pub struct DecodePrefetcher {
    waiting: VecDeque<Image>,
    running: VecDeque<(String, tokio::task::JoinHandle<Result<DecodedPixels>>)>,
    preprocessor: Preprocessor,
    store: Option<Store>,
    depth: usize,
}

impl DecodePrefetcher {
    pub fn new(
        images: Vec<Image>,
        preprocessor: Preprocessor,
        store: Option<Store>,
        depth: usize,
    ) -> Self {
        Self { waiting: images.into(), running: VecDeque::new(), preprocessor, store, depth }
    }

    /// Returns the next `count` images, fewer at the end.
    pub async fn next(&mut self, count: usize) -> Vec<(String, Result<DecodedPixels>)> {
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
                Err(Error::new(ErrorKind::Internal, "decoding did not end").with_source(error))
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
            .map_err(|error| Error::new(ErrorKind::Io, "can't read the file").with_source(error))?,
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
        Err(Error::new(ErrorKind::Internal, "decoding did not end").with_source(error))
    })
}

/// The caption of an image or the error, with the name by which the image was given.
pub type CaptionedImage = (String, Result<Caption>);

/// Captions the decoded images of `batch`, in its order.
pub fn caption(
    engine: &mut Engine,
    batch: Vec<(String, Result<DecodedPixels>)>,
) -> Result<Vec<CaptionedImage>> {
    let decoded = batch.iter().filter_map(|(_, decoded)| decoded.as_ref().ok());
    let pixels: Vec<&[u8]> = decoded.map(|image| image.rgb.as_slice()).collect();
    let captions = if pixels.is_empty() { Vec::new() } else { engine.caption(&pixels)? };
    let mut remaining = captions.into_iter();
    let mut next =
        || remaining.next().ok_or_else(|| Error::new(ErrorKind::Internal, "an image was left out"));
    Ok(batch.into_iter().map(|(path, decoded)| (path, decoded.and_then(|_| next()))).collect())
}

/// Finds the images of `paths`: files as given, folders and prefixes searched.
pub async fn find(paths: &[String], store: Option<&Store>) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for path in paths {
        if let Some(store) = store.filter(|_| path.starts_with(SCHEME)) {
            let location: Location = path.parse().map_err(|error| {
                Error::new(ErrorKind::Config, "PATH is wrong")
                    .with_context("value", path)
                    .with_source(error)
            })?;
            for entry in store.list(&location.bucket, &location.key).await? {
                // An object named in full needs no extension.
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
            .with_context("value", paths.join(" "))
            .with_context("allowed", format!("files, or folders with {}", EXTENSIONS.join(", "))));
    }
    Ok(images)
}

/// Finds the images below `folder`, in the order of their names.
fn search(folder: &Path, images: &mut Vec<Image>) -> Result<()> {
    let failed = |error| {
        Error::new(ErrorKind::Io, "can't list")
            .with_context("path", folder.display())
            .with_source(error)
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Links to folders are not followed: they can form cycles.
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

/// Builds a tokio runtime with at most one blocking thread per core: these threads read and decode
/// files, and more of them would only cost memory.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(cores)
        .enable_all()
        .build()
        .map_err(|error| {
            Error::new(ErrorKind::Io, "can't start the async runtime").with_source(error)
        })
}
