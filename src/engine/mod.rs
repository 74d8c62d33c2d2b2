//! A bundle running in ONNX Runtime: pixels in, captions out.
//!
//! The engine runs at one batch size. A short batch is padded with blank images, so that every
//! image meets the same shapes and kernels whatever shares its batch: same input, same caption.

pub mod generate;
mod session;

use tokenizers::Tokenizer;

use crate::bundle::{Bundle, GenerationConfig};
use crate::config::{Model, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;
use generate::Hypothesis;
use session::{Encoded, Sessions};

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
    generation: GenerationConfig,
    preprocessor: Preprocessor,
    tokenizer: Tokenizer,
    sessions: Sessions,
    batch_size: usize,
    /// The vision tower's input, `[batch_size, 3, height, width]`, written anew for each batch.
    pixels: Vec<f32>,
}

impl Engine {
    /// Loads `bundle` to run at most `batch_size` images at once, and runs it once, blank.
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
        let generation = generation(&bundle, model)?;
        let tokenizer = bundle.tokenizer()?;
        let preprocessor = Preprocessor::new(bundle.preprocessor.clone())?;
        let (height, width) = preprocessor.input_size();
        let sessions = Sessions::load(&bundle, runtime)?;
        let pixels = vec![0.0; batch_size * 3 * height * width];
        let mut engine =
            Self { bundle, generation, preprocessor, tokenizer, sessions, batch_size, pixels };
        engine.caption(&[&vec![0; 3 * height * width]])?;
        Ok(engine)
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// From now on captions say where the local queries looked.
    pub fn keep_attention(&mut self) {
        self.sessions.keep_attention();
    }

    /// Captions 1 to `batch_size` images, each 8-bit RGB at the model's input size, in order.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for images of another number or size; `Runtime` if the model fails.
    pub fn caption(&mut self, images: &[&[u8]]) -> Result<Vec<Caption>> {
        let (height, width) = self.preprocessor.input_size();
        let size = 3 * height * width;
        if images.is_empty() || images.len() > self.batch_size {
            return Err(Error::new(ErrorKind::Internal, "a batch of the wrong size")
                .with("images", images.len())
                .with("allowed", format!("1 to {}", self.batch_size)));
        }
        if let Some(image) = images.iter().find(|image| image.len() != size) {
            return Err(Error::new(ErrorKind::Internal, "an image of the wrong size")
                .with("bytes", image.len())
                .with("expected", size));
        }
        let (used, padding) = self.pixels.split_at_mut(images.len() * size);
        for (image, tensor) in images.iter().zip(used.chunks_exact_mut(size)) {
            self.preprocessor.normalise(image, tensor);
        }
        padding.fill(0.0);

        let dim = self.bundle.config.embedding_dim;
        let shape = [self.batch_size, 3, height, width];
        let encoded = self.sessions.encode(&self.pixels, shape, dim)?;
        self.write_captions(encoded, images.len())
    }

    /// Captions 1 to `batch_size` images that are already seen: what a vision tower made of them.
    ///
    /// # Errors
    /// As [`Self::caption`].
    pub fn caption_seen(&mut self, images: &[Seen]) -> Result<Vec<Caption>> {
        let (dim, patches) = (self.bundle.config.embedding_dim, self.bundle.config.num_patches);
        let fits = |seen: &&Seen| seen.image.len() == dim && seen.patches.len() == patches * dim;
        let fitting = images.iter().filter(fits).count();
        if images.is_empty() || images.len() > self.batch_size || fitting < images.len() {
            return Err(Error::new(ErrorKind::Internal, "embeddings of the wrong size or number"));
        }
        let padded = |part: fn(&Seen) -> &Vec<f32>, width: usize| {
            let mut rows: Vec<f32> = images.iter().flat_map(part).copied().collect();
            // Not zeros, which have no direction.
            rows.resize(self.batch_size * width, 1.0);
            rows
        };
        let whole = padded(|seen| &seen.image, dim);
        let parts = padded(|seen| &seen.patches, patches * dim);
        let encoded = self.sessions.encode_seen(&whole, &parts, [self.batch_size, patches, dim])?;
        self.write_captions(encoded, images.len())
    }

    fn write_captions(&mut self, encoded: Encoded, images: usize) -> Result<Vec<Caption>> {
        let Encoded { prefix, embeddings, attention } = encoded;
        let (dim, patches) =
            (self.bundle.config.embedding_dim, self.bundle.config.num_patches.max(1));
        let looked = attention.len() / self.batch_size;
        let hypotheses = self.sessions.generate(
            &self.bundle,
            &self.generation,
            prefix,
            images,
            self.batch_size,
        )?;
        hypotheses
            .iter()
            .zip(embeddings.chunks_exact(dim))
            .enumerate()
            .map(|(image, (hypothesis, embedding))| {
                let mut caption = self.read(hypothesis, embedding)?;
                let queries = attention[image * looked..(image + 1) * looked].chunks_exact(patches);
                caption.attention = queries.map(<[f32]>::to_vec).collect();
                Ok(caption)
            })
            .collect()
    }

    fn read(&self, hypothesis: &Hypothesis, embedding: &[f32]) -> Result<Caption> {
        if hypothesis.tokens.is_empty() {
            tracing::warn!(model = self.bundle.digest(), "the model has no caption for an image");
        }
        let ids: Vec<u32> =
            hypothesis.tokens.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        let text = self.tokenizer.decode(&ids, true).map_err(|error| {
            Error::new(ErrorKind::Runtime, "can't decode a caption's tokens").because(error)
        })?;
        Ok(Caption {
            text: text.trim().to_owned(),
            score: (hypothesis.mean() * 1e4).round() / 1e4,
            embedding: embedding.to_vec(),
            attention: Vec::new(),
        })
    }
}

/// The bundle's beam search settings with the configured width.
fn generation(bundle: &Bundle, model: &Model) -> Result<GenerationConfig> {
    let mut generation = bundle.generation.clone();
    let widest = bundle.config.num_candidates / 2;
    if let Some(beams) = model.num_beams {
        generation.num_beams = beams;
    }
    if generation.num_beams == 0 || generation.num_beams > widest {
        return Err(Error::new(ErrorKind::Config, "model.num_beams is out of range")
            .with("value", generation.num_beams)
            .with("allowed", format!("1 to {widest}")));
    }
    Ok(generation)
}
