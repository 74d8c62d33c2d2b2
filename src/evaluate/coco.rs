//! Files in COCO's format (Chen et al. 2015, arXiv:1504.00325): references and results.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// An image with its reference captions.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferencedImage {
    pub id: u64,
    pub file_name: String,
    /// At least one.
    pub references: Vec<String>,
}

/// A caption of an image: one entry of a results file.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct ImageCaption {
    pub image_id: u64,
    pub caption: String,
}

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
    annotations: Vec<ImageCaption>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
}

/// Images with their references, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct References {
    pub images: Vec<ReferencedImage>,
    /// Number of listed images without references.
    pub without_references: usize,
}

/// Reads a file of references: `images` with `id` and `file_name`, `annotations` with `image_id`
/// and `caption`.
///
/// # Errors
/// `ErrorKind::Config` for a file that can't be read or has another format, a duplicate id, a
/// caption of an unknown image, or no references.
pub fn read_references(path: &Path) -> Result<References> {
    let wrong = |message: &'static str| {
        Error::new(ErrorKind::Config, message).with_context("path", path.display())
    };
    let annotations: Annotations = read_json(path, "--references")?;
    let mut by_image: HashMap<u64, Vec<String>> = HashMap::new();
    let mut ids = HashSet::new();
    for image in &annotations.images {
        if !ids.insert(image.id) {
            return Err(wrong("--references: duplicate image id").with_context("id", image.id));
        }
    }
    for ImageCaption { image_id, caption } in annotations.annotations {
        if !ids.contains(&image_id) {
            return Err(wrong("--references: caption of an image that is not listed")
                .with_context("image_id", image_id));
        }
        if !caption.trim().is_empty() {
            by_image.entry(image_id).or_default().push(caption);
        }
    }
    let listed = annotations.images.len();
    let with_references = |image: Image| {
        let references = by_image.remove(&image.id)?;
        Some(ReferencedImage { id: image.id, file_name: image.file_name, references })
    };
    let images: Vec<ReferencedImage> =
        annotations.images.into_iter().filter_map(with_references).collect();
    if images.is_empty() {
        return Err(wrong("--references contains no captions"));
    }
    Ok(References { without_references: listed - images.len(), images })
}

/// Reads a results file: captions by image id.
///
/// # Errors
/// `ErrorKind::Config` for a file that can't be read or has another format, or a duplicate id.
pub fn read_results(path: &Path) -> Result<BTreeMap<u64, String>> {
    let captioned: Vec<ImageCaption> = read_json(path, "--captions")?;
    let mut captions = BTreeMap::new();
    for ImageCaption { image_id, caption } in captioned {
        if captions.insert(image_id, caption).is_some() {
            return Err(Error::new(ErrorKind::Config, "--captions: duplicate image id")
                .with_context("path", path.display())
                .with_context("image_id", image_id));
        }
    }
    Ok(captions)
}

fn read_json<T: DeserializeOwned>(path: &Path, option: &'static str) -> Result<T> {
    let unusable = || {
        Error::new(ErrorKind::Config, format!("{option} can't be used"))
            .with_context("path", path.display())
    };
    let bytes = fs::read(path).map_err(|error| unusable().with_source(error))?;
    serde_json::from_slice(&bytes).map_err(|error| unusable().with_source(error))
}
