//! A bundle running in ONNX Runtime: pixels in, captions out.

use crate::bundle::Bundle;
use crate::config::{Model, Runtime};
use crate::error::Result;
use crate::image::Preprocessor;

/// One image's caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    pub text: String,
    /// Mean log-probability of a token, rounded to four decimals.
    pub score: f32,
    /// The image's embedding in the joint space, unit length, `[embedding_dim]`.
    pub embedding: Vec<f32>,
}

/// A loaded bundle. One owner runs it; it is `Send`.
pub struct Engine {
    bundle: Bundle,
}

impl Engine {
    /// Loads `bundle` to run at most `batch_size` images at once.
    pub fn load(
        bundle: Bundle,
        _runtime: &Runtime,
        _model: &Model,
        _batch_size: usize,
    ) -> Result<Self> {
        Ok(Self { bundle })
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn preprocessor(&self) -> &Preprocessor {
        todo!()
    }

    pub fn batch_size(&self) -> usize {
        todo!()
    }

    /// Captions 1 to `batch_size` images, each 8-bit RGB at the model's input size, in order.
    pub fn caption(&mut self, _images: &[&[u8]]) -> Result<Vec<Caption>> {
        todo!()
    }
}
