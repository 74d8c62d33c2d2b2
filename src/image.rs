//! Encoded bytes -> pixels as CLIP's image processor gives them.

use crate::bundle::PreprocessorConfig;
use crate::config::Limits;
use crate::error::Result;

/// An image ready for the vision tower: 8-bit RGB, `height x width x 3`, at the model's size.
#[derive(Clone, Debug)]
pub struct DecodedPixels {
    /// Size of the source image in pixels, after its EXIF orientation is applied.
    pub source_width: u32,
    pub source_height: u32,
    /// Media type found from the bytes themselves, such as `image/jpeg`.
    pub content_type: &'static str,
    /// Row-major RGB at the model's input size.
    pub rgb: Vec<u8>,
}

/// Decodes, resizes, crops and normalises as a `preprocessor_config.json` says.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    config: PreprocessorConfig,
}

impl Preprocessor {
    pub fn new(config: PreprocessorConfig) -> Result<Self> {
        Ok(Self { config })
    }

    /// Height and width of the model's input in pixels.
    pub fn input_size(&self) -> (usize, usize) {
        todo!()
    }

    /// Decodes `bytes`, whatever supported format they are in.
    pub fn decode(&self, _bytes: &[u8], _limits: &Limits) -> Result<DecodedPixels> {
        let _ = &self.config;
        todo!()
    }

    /// Writes `rgb` into `tensor` as normalised planes, `[3, height, width]`.
    pub fn normalise(&self, _rgb: &[u8], _tensor: &mut [f32]) {
        todo!()
    }
}
