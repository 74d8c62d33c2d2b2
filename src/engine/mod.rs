//! A bundle that runs in ONNX Runtime: pixels in, captions out.
//!
//! It has two halves, which can run on different threads: [`Encoder`] (vision tower and prefix)
//! and [`CaptionDecoder`] (beam search and tokenizer). Images are encoded at a few fixed batch
//! sizes, with padding, and no kernel at these sizes mixes the rows of a batch: an image gets the
//! same caption, whichever images share its batch.

mod beam_search;
mod bound_buffers;
mod caption_decoder;
mod capture_lock;
mod decoder_session;
mod encoded;
mod encoder;
mod encoder_sessions;
mod micro_batch;
mod ort_values;
mod pixels;
mod session_pool;

use crate::bundle::Bundle;
use crate::config::{Model, Runtime};
use crate::error::Result;
use crate::image::Preprocessor;
pub use caption_decoder::{Caption, CaptionDecoder};
pub use encoded::Encoded;
pub use encoder::Encoder;
pub use encoder_sessions::ImageFeatures;
pub use pixels::Pixels;
use session_pool::InferenceThreads;

/// A loaded bundle. It is `Send` and has one owner.
pub struct Engine {
    bundle: Bundle,
    encoder: Encoder,
    decoder: CaptionDecoder,
}

impl Engine {
    /// Loads `bundle` for batches of at most `batch_size` images and warms it up on blank images.
    ///
    /// # Errors
    /// `ErrorKind::Config` for a beam width that the bundle does not support; `Bundle` or
    /// `Runtime` if the bundle can't be loaded.
    pub fn load(
        bundle: Bundle,
        runtime: &Runtime,
        model: &Model,
        batch_size: usize,
    ) -> Result<Self> {
        let loading = capture_lock::shared();
        let threads = InferenceThreads::start(crate::runtime::sessions(runtime))?;
        let decoder = CaptionDecoder::load(bundle.clone(), runtime, model, threads.clone())?;
        let encoder = Encoder::load(&bundle, runtime, threads, batch_size)?;
        drop(loading);
        let mut engine = Self { bundle, encoder, decoder };
        let blank = engine.encoder.warm_up()?;
        engine.decoder.generate(blank)?;
        Ok(engine)
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn preprocessor(&self) -> &Preprocessor {
        self.encoder.preprocessor()
    }

    pub fn batch_size(&self) -> usize {
        self.encoder.batch_size()
    }

    /// An empty batch, to be filled and given to [`Encoder::encode_pixels`].
    ///
    /// # Errors
    /// As [`Encoder::allocate_pixels`].
    pub fn allocate_pixels(&self) -> Result<Pixels> {
        self.encoder.allocate_pixels()
    }

    /// From now on [`Caption::attention`] is filled, if the bundle has local queries.
    pub fn keep_attention(&mut self) {
        self.encoder.keep_attention();
    }

    /// The two halves, for two threads: one batch is encoded while another is decoded.
    pub fn split(self) -> (Encoder, CaptionDecoder) {
        (self.encoder, self.decoder)
    }

    /// Captions 1 to `batch_size` images in order, each 8-bit RGB at the model's input size.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for another number or size of images; `Runtime` if the model fails.
    pub fn caption(&mut self, images: &[&[u8]]) -> Result<Vec<Caption>> {
        let encoded = self.encoder.encode(images)?;
        self.decoder.generate(encoded)
    }

    /// Captions 1 to `batch_size` images, in order, from a vision tower's outputs.
    ///
    /// # Errors
    /// As [`Self::caption`].
    pub fn caption_features(&mut self, images: &[ImageFeatures]) -> Result<Vec<Caption>> {
        let encoded = self.encoder.encode_features(images)?;
        self.decoder.generate(encoded)
    }
}
