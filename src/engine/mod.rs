//! A bundle running in ONNX Runtime: pixels in, captions out.
//!
//! Two halves, each of which can run on a thread of its own: [`Encoder`] (vision tower and prefix)
//! and [`Writer`] (decoder and tokenizer). Images are encoded in a few fixed sizes, short ones
//! padded, and no kernel in use mixes the rows of a batch: same input, same caption, whatever
//! shares its batch.

pub mod beam_search;
mod bound_buffers;
mod caption_decoder;
mod capture_lock;
mod decoder_session;
mod encoded;
mod encoder;
mod encoder_sessions;
mod pixels;
mod session_pool;

use crate::bundle::Bundle;
use crate::config::{Model, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;
pub use caption_decoder::Writer;
pub use encoded::Encoded;
pub use encoder::Encoder;
pub use pixels::Pixels;
use session_pool::Threads;

/// One image's caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    pub text: String,
    /// Mean log-probability of a token, rounded to four decimals.
    pub score: f32,
    /// The image's embedding in the joint space, unit length, `[embedding_dim]`.
    pub embedding: Vec<f32>,
    /// For each local query, how much it looked at each patch of the image; empty unless
    /// [`Engine::keep_attention`] asks for it and the bundle tells.
    pub attention: Vec<Vec<f32>>,
}

/// What a vision tower makes of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `[embedding_dim]`
    pub image: Vec<f32>,
    /// `[num_patches, embedding_dim]`
    pub patches: Vec<f32>,
}

/// A loaded bundle. One owner runs it; it is `Send`.
pub struct Engine {
    bundle: Bundle,
    encoder: Encoder,
    writer: Writer,
}

impl Engine {
    /// Loads `bundle` to run at most `batch_size` images at once, and runs every size once, blank.
    ///
    /// # Errors
    /// `ErrorKind::Config` for a beam width the bundle can't do; `Bundle` or `Runtime` if it
    /// can't be loaded.
    pub fn load(
        bundle: Bundle,
        runtime: &Runtime,
        model: &Model,
        batch_size: usize,
    ) -> Result<Self> {
        let loading = capture_lock::beside_others();
        let threads = Threads::start(crate::runtime::instances(runtime))?;
        let writer = Writer::load(bundle.clone(), runtime, model, threads.clone())?;
        let encoder = Encoder::load(&bundle, runtime, threads, batch_size)?;
        drop(loading);
        let mut engine = Self { bundle, encoder, writer };
        let blank = engine.encoder.warm_up()?;
        engine.writer.write(blank)?;
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

    /// Blank room for a batch, to be filled elsewhere and given to [`Encoder::encode_pixels`].
    ///
    /// # Errors
    /// As [`Encoder::pixels`].
    pub fn pixels(&self) -> Result<Pixels> {
        self.encoder.pixels()
    }

    /// From now on captions say where the local queries looked.
    pub fn keep_attention(&mut self) {
        self.encoder.keep_attention();
    }

    /// The two halves, for two threads: one batch is encoded while another is captioned.
    pub fn split(self) -> (Encoder, Writer) {
        (self.encoder, self.writer)
    }

    /// Captions 1 to `batch_size` images, each 8-bit RGB at the model's input size, in order.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for images of another number or size; `Runtime` if the model fails.
    pub fn caption(&mut self, images: &[&[u8]]) -> Result<Vec<Caption>> {
        let encoded = self.encoder.encode(images)?;
        self.writer.write(encoded)
    }

    /// Captions 1 to `batch_size` images that are already seen: what a vision tower made of them.
    ///
    /// # Errors
    /// As [`Self::caption`].
    pub fn caption_seen(&mut self, images: &[Seen]) -> Result<Vec<Caption>> {
        let encoded = self.encoder.encode_seen(images)?;
        self.writer.write(encoded)
    }
}

fn wrong_size(images: usize, largest: usize) -> Error {
    Error::new(ErrorKind::Internal, "a batch of the wrong size")
        .with("images", images)
        .with("allowed", format!("1 to {largest}"))
}
