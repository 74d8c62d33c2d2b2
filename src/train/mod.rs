//! Training from text alone: a corpus of captions and an encoder directory in, a bundle out.
//!
//! ```text
//! corpus ─ tokenizer ─ embed ─ trainer (checkpoints) ─ export
//! ```
//! May use `model`, `onnx`, `encoder` and the common ground; never `worker` or `engine`.

pub mod checkpoint;
pub mod corpus;
pub mod embed;
pub mod export;
pub mod progress;
pub mod settings;
pub mod tokenizer;
pub mod trainer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;
use tracing::info;

use crate::config::Runtime;
use crate::encoder::EncoderConfig;
use crate::error::{Error, ErrorKind, Result};
use checkpoint::{Checkpoints, Run};
use corpus::Corpus;
use settings::Settings;
use trainer::{Epoch, Examples, Trainer};

/// What to train from and where to write it.
pub struct Request {
    pub encoder: PathBuf,
    pub corpora: Vec<PathBuf>,
    pub out: PathBuf,
    /// Embeddings and checkpoints; kept between runs.
    pub cache: PathBuf,
    pub settings: Settings,
    pub runtime: Runtime,
    /// Continue from the checkpoint in `cache`.
    pub resume: bool,
    /// Set from outside to end training after the step under way, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// Trains, writes the bundle, and tells the losses after each pass over the corpus.
///
/// # Errors
/// `ErrorKind::Config` for a corpus, settings or a checkpoint that don't fit; others as they
/// happen. A stop ends with `ErrorKind::Runtime` after a checkpoint is written.
pub fn run(request: &Request) -> Result<Vec<Epoch>> {
    let settings = &request.settings;
    export::check(&request.out)?;
    let encoder = EncoderConfig::open(&request.encoder)?;
    let corpus = Corpus::read(&request.corpora, settings)?;
    info!(
        captions = corpus.captions.len(),
        held_out = corpus.held_out.len(),
        skipped = corpus.skipped.total(),
        "read the corpus"
    );
    make_folder(&request.cache)?;
    let tokenizer = tokenizer::train(&corpus.captions, settings.vocab_size)?;
    let all: Vec<String> = corpus.captions.iter().chain(&corpus.held_out).cloned().collect();
    let embeddings =
        embed::embed(&request.encoder, &encoder, &all, &request.cache, &request.runtime)?;
    let dim = encoder.embedding_dim;
    let memory = memory(&embeddings[..corpus.captions.len() * dim], dim, settings);
    let tokens = tokenizer::encode(&tokenizer, &all, settings.shape.max_length)?;
    let examples = Examples::new(tokens, embeddings, dim, corpus.captions.len());
    let vocab_size = tokenizer.get_vocab_size(true);
    let checkpoints = Checkpoints::new(
        &request.cache,
        Run {
            settings: settings.clone(),
            corpus: corpus.digest.clone(),
            encoder: format!("{} {}", encoder.name, encoder.version),
        },
    );
    let trainer = Trainer::new(settings, examples, &memory, vocab_size, checkpoints, &request.stop);
    let outcome = trainer.run(request.resume)?;
    export::write(&export::Parts {
        request,
        encoder: &encoder,
        corpus: &corpus,
        tokenizer: &tokenizer,
        memory: &memory,
        outcome: &outcome,
    })?;
    Ok(outcome.curve)
}

/// A memory for the projection: `memory_size` captions' embeddings drawn from the corpus.
fn memory(embeddings: &[f32], dim: usize, settings: &Settings) -> Vec<f32> {
    let captions = embeddings.len() / dim;
    let size = settings.memory_size.min(captions);
    let mut generator = StdRng::seed_from_u64(settings.seed);
    let mut chosen = index::sample(&mut generator, captions, size).into_vec();
    chosen.sort_unstable();
    chosen.iter().flat_map(|row| &embeddings[row * dim..(row + 1) * dim]).copied().collect()
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| {
        Error::new(ErrorKind::Io, "can't make a folder").with("path", path.display()).because(error)
    })
}
