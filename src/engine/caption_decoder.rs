//! The caption decoder: the encoder's output to text, by beam search and the tokenizer.

use tokenizers::Tokenizer;

use super::beam_search::Hypothesis;
use super::capture_lock;
use super::decoder_session::DecoderSession;
use super::encoded::Encoded;
use super::session_pool::{InferenceThreads, SessionPool};
use crate::bundle::{Bundle, GenerationConfig};
use crate::config::{Model, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// One image's caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    pub text: String,
    /// Mean log-probability of a token, rounded to four decimals.
    pub score: f32,
    /// The image's embedding in the joint space, unit length, `[embedding_dim]`.
    pub embedding: Vec<f32>,
    /// Attention of each local query over the image's patches, `[queries][num_patches]`. Empty
    /// unless `Engine::keep_attention` was called and the bundle has local queries.
    pub attention: Vec<Vec<f32>>,
}

/// The second half of an engine. It is `Send` and has one owner.
pub struct CaptionDecoder {
    bundle: Bundle,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    sessions: SessionPool<DecoderSession>,
}

impl CaptionDecoder {
    /// # Errors
    /// `ErrorKind::Config` for a beam width that the bundle does not support; `Bundle` or
    /// `Runtime` if the decoder can't be loaded.
    pub fn load(
        bundle: Bundle,
        runtime: &Runtime,
        model: &Model,
        threads: InferenceThreads,
    ) -> Result<Self> {
        let generation = generation_config(&bundle, model)?;
        let tokenizer = bundle.tokenizer()?;
        let sessions = SessionPool::load(threads, || DecoderSession::load(&bundle, runtime))?;
        Ok(Self { bundle, generation, tokenizer, sessions })
    }

    /// Generates the caption of each image of the batch, in order.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the model fails.
    pub fn generate(&mut self, encoded: Encoded) -> Result<Vec<Caption>> {
        let Encoded { images, prefix, embeddings, attention } = encoded;
        let model = &self.bundle.config;
        let (dim, patches) = (model.embedding_dim, model.num_patches.max(1));
        let per_image = attention.len() / images.max(1);
        let row = model.prefix_length * model.hidden_size;
        let parts = prefix.chunks(images.div_ceil(self.sessions.size()).max(1) * row.max(1));
        let running = capture_lock::shared();
        let hypotheses = self.sessions.map(parts.collect(), |session, part| {
            session.generate(&self.bundle, &self.generation, part)
        })?;
        drop(running);
        hypotheses
            .iter()
            .flatten()
            .zip(embeddings.chunks_exact(dim))
            .enumerate()
            .map(|(image, (hypothesis, embedding))| {
                let mut caption = self.caption(hypothesis, embedding)?;
                let queries =
                    attention[image * per_image..(image + 1) * per_image].chunks_exact(patches);
                caption.attention = queries.map(<[f32]>::to_vec).collect();
                Ok(caption)
            })
            .collect()
    }

    /// The caption of `hypothesis`, without attention.
    fn caption(&self, hypothesis: &Hypothesis, embedding: &[f32]) -> Result<Caption> {
        if hypothesis.tokens.is_empty() {
            tracing::warn!(
                model = self.bundle.digest(),
                "the model generated an empty caption for an image"
            );
        }
        let ids: Vec<u32> =
            hypothesis.tokens.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        let text = self.tokenizer.decode(&ids, true).map_err(|error| {
            Error::new(ErrorKind::Runtime, "can't decode a caption's tokens").with_source(error)
        })?;
        Ok(Caption {
            text: text.trim().to_owned(),
            score: (hypothesis.mean() * 1e4).round() / 1e4,
            embedding: embedding.to_vec(),
            attention: Vec::new(),
        })
    }
}

/// The bundle's beam search settings with the configured beam width.
fn generation_config(bundle: &Bundle, model: &Model) -> Result<GenerationConfig> {
    let mut generation = bundle.generation.clone();
    let widest = bundle.config.num_candidates / 2;
    if let Some(beams) = model.num_beams {
        generation.num_beams = beams;
    }
    if generation.num_beams == 0 || generation.num_beams > widest {
        return Err(Error::new(ErrorKind::Config, "model.num_beams is out of range")
            .with_context("value", generation.num_beams)
            .with_context("allowed", format!("1 to {widest}")));
    }
    Ok(generation)
}
