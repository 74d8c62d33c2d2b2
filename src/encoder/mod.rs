//! Joint image-text encoders: directories with frozen towers in ONNX, a text tokenizer and the image
//! preprocessing, as input of training. Depends on `onnx`, `bundle` and `runtime`.
//!
//! ```text
//! config.json               EncoderConfig
//! preprocessor_config.json  as in a bundle
//! tokenizer.json            the text tower's
//! onnx/vision.onnx          pixel_values -> image_embeds, patch_embeds
//! onnx/text.onnx            input_ids, attention_mask -> text_embeds, token_embeds
//! ```

pub mod bert;
pub mod clip;
pub mod efficientnet;
pub mod packages;
pub mod random;
pub mod standin;
pub mod weights;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bundle::{CONFIG, write_json};
use crate::error::{Error, ErrorKind, Result};

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// An encoder's `config.json`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct EncoderConfig {
    /// Always `fusioncap-encoder`.
    pub model_type: String,
    pub name: String,
    pub version: String,
    /// Width of the joint embedding space.
    pub embedding_dim: usize,
    /// Patch embeddings per image.
    pub num_patches: usize,
    /// Side of the input in pixels.
    pub image_size: usize,
    /// Maximum text length in tokens.
    pub text_max_length: usize,
    /// The source models, with licences.
    pub sources: Vec<String>,
}

impl EncoderConfig {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` if it is missing or not an encoder's configuration.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let unusable = || {
            Error::new(ErrorKind::Bundle, "not an encoder directory")
                .with_context("path", path.display())
        };
        let bytes = fs::read(&path).map_err(|error| unusable().with_source(error))?;
        let config: Self =
            serde_json::from_slice(&bytes).map_err(|error| unusable().with_source(error))?;
        if config.model_type != "fusioncap-encoder" {
            return Err(unusable().with_context("model_type", config.model_type));
        }
        Ok(config)
    }

    fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(CONFIG), self)
    }
}

/// Writes a file and creates its parent directories.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::unwritable(folder, error))?;
    }
    fs::write(path, bytes).map_err(|error| Error::unwritable(path, error))
}
