//! Modality alignment: moves image embeddings to the distribution of caption embeddings.
//!
//! Training uses no images by default. If the mean, or the mean and scale, of unpaired images is
//! given, image embeddings are shifted, or standardised, to those of the captions (C3, Zhang et al.
//! 2024, arXiv:2401.08567).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::onnx::prefix::Alignment;

/// The `[alignment]` table of the settings.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct AlignmentSettings {
    pub text_mean: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
}

/// Statistics of the unit-length embeddings of unpaired images.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// `[dim]`
    pub mean: Vec<f32>,
    /// Standard deviations, `[dim]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Vec<f32>>,
}

impl Statistics {
    /// Computes the statistics of unit-length `embeddings` `[rows, dim]`.
    pub fn new(embeddings: &[f32], dim: usize) -> Self {
        let rows = (embeddings.len() / dim).max(1) as f32;
        let mut mean = vec![0.0; dim];
        for row in embeddings.chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(sum, entry)| *sum += entry / rows);
        }
        let mut variance = vec![0.0; dim];
        for row in embeddings.chunks_exact(dim) {
            for ((sum, entry), mean) in variance.iter_mut().zip(row).zip(&mean) {
                *sum += (entry - mean).powi(2) / rows;
            }
        }
        Self { mean, scale: Some(variance.into_iter().map(f32::sqrt).collect()) }
    }

    fn read(path: &Path, dim: usize) -> Result<Self> {
        let unusable = || {
            Error::new(ErrorKind::Config, "alignment.images can't be used")
                .with_context("path", path.display())
        };
        let bytes = fs::read(path).map_err(|error| unusable().with_source(error))?;
        let read: Self =
            serde_json::from_slice(&bytes).map_err(|error| unusable().with_source(error))?;
        let scales = read.scale.iter().flatten();
        let positive = scales.clone().all(|scale| *scale > 0.0 && scale.is_finite());
        let sizes = read.mean.len() == dim && read.scale.as_ref().is_none_or(|s| s.len() == dim);
        if sizes && positive && read.mean.iter().all(|entry| entry.is_finite()) {
            return Ok(read);
        }
        Err(unusable()
            .with_context("allowed", format!("lists of {dim} finite numbers, scales above 0")))
    }
}

/// The alignment of images to the captions' `embeddings` `[captions, dim]`; None without one.
///
/// # Errors
/// `ErrorKind::Config` if the images' statistics can't be read or have the wrong size.
pub fn build(
    embeddings: &[f32],
    dim: usize,
    settings: &AlignmentSettings,
) -> Result<Option<Alignment>> {
    let texts = Statistics::new(embeddings, dim);
    let Some(path) = &settings.images else {
        let shift: Vec<f32> = texts.mean.iter().map(|mean| settings.text_mean * mean).collect();
        let moved = settings.text_mean != 0.0;
        return Ok(moved.then(|| Alignment { scale: vec![1.0; dim], shift }));
    };
    let images = Statistics::read(path, dim)?;
    let scale: Vec<f32> = match (&texts.scale, &images.scale) {
        (Some(texts), Some(images)) => texts.iter().zip(images).map(|(t, i)| t / i).collect(),
        _ => vec![1.0; dim],
    };
    let shift = (0..dim).map(|entry| texts.mean[entry] - scale[entry] * images.mean[entry]);
    Ok(Some(Alignment { shift: shift.collect(), scale }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTIONS: [f32; 4] = [1.0, 0.0, 0.0, 1.0];

    fn with_images(text: &str) -> Result<Option<Alignment>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let images = Some(file.path().to_path_buf());
        build(&CAPTIONS, 2, &AlignmentSettings { text_mean: 0.0, images })
    }

    #[test]
    fn images_are_not_moved_by_default() {
        let settings = |text_mean| AlignmentSettings { text_mean, images: None };
        assert!(build(&CAPTIONS, 2, &settings(0.0)).unwrap().is_none());
        let half = build(&CAPTIONS, 2, &settings(0.5)).unwrap().unwrap();
        assert_eq!((half.scale, half.shift), (vec![1.0, 1.0], vec![0.25, 0.25]));
    }

    #[test]
    fn images_get_the_mean_and_scale_of_captions() {
        let mean = with_images(r#"{"mean": [0.1, -0.2]}"#).unwrap().unwrap();
        assert_eq!((mean.scale, mean.shift), (vec![1.0, 1.0], vec![0.4, 0.7]));
        let both = with_images(r#"{"mean": [1.0, 0.0], "scale": [0.25, 1.0]}"#).unwrap().unwrap();
        assert_eq!((both.scale, both.shift), (vec![2.0, 0.5], vec![-1.5, 0.5]));
    }

    #[test]
    fn statistics_of_the_wrong_size_are_refused() {
        for text in [
            r#"{"mean": [1.0]}"#,
            r#"{"mean": [1.0, 0.0], "scale": [1.0, 0.0]}"#,
            r#"{"mean": [1.0, 0.0], "variance": [1.0, 1.0]}"#,
            "no json",
        ] {
            let error = with_images(text).err().unwrap();
            assert_eq!(error.exit_code(), 2, "{text}: {error}");
            assert!(error.to_string().starts_with("alignment.images"), "{error}");
        }
    }
}
