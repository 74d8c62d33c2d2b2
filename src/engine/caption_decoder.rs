//! What an encoder made of a batch, to captions: beam search and the tokenizer.

use tokenizers::Tokenizer;

use super::beam_search::Hypothesis;
use super::decoder_session::Decoder;
use super::session_pool::Threads;
use super::{Caption, Encoded, capture_lock};
use crate::bundle::{Bundle, GenerationConfig};
use crate::config::{Model, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The second half of an engine. One owner runs it; it is `Send`.
pub struct Writer {
    bundle: Bundle,
    generation: GenerationConfig,
    tokenizer: Tokenizer,
    threads: Threads,
    /// One for each thread.
    decoders: Vec<Decoder>,
}

impl Writer {
    pub fn load(
        bundle: Bundle,
        runtime: &Runtime,
        model: &Model,
        threads: Threads,
    ) -> Result<Self> {
        let generation = generation(&bundle, model)?;
        let tokenizer = bundle.tokenizer()?;
        let decoders = threads.instances(|| Decoder::load(&bundle, runtime))?;
        Ok(Self { bundle, generation, tokenizer, threads, decoders })
    }

    /// The caption of each image of the batch, in order.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the model fails.
    pub fn write(&mut self, encoded: Encoded) -> Result<Vec<Caption>> {
        let Encoded { images, prefix, embeddings, attention } = encoded;
        let model = &self.bundle.config;
        let (dim, patches) = (model.embedding_dim, model.num_patches.max(1));
        let looked = attention.len() / images.max(1);
        let row = model.prefix_length * model.hidden_size;
        let parts = prefix.chunks(images.div_ceil(self.threads.count()).max(1) * row.max(1));
        let running = capture_lock::beside_others();
        let hypotheses =
            self.threads.share(&mut self.decoders, parts.collect(), |decoder, part| {
                decoder.generate(&self.bundle, &self.generation, part)
            })?;
        drop(running);
        hypotheses
            .iter()
            .flatten()
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
