//! Training from text alone: from a corpus of captions and an encoder directory to a bundle.
//!
//! ```text
//! corpus ─ tokenizer ─ embed ─── memory ┐
//!    └──── nouns ─ embed ─ noun_bank ───┴ examples ─ trainer (checkpoints) ─ export
//! ```
//! Depends on `model`, `onnx`, `encoder` and the shared modules, never on `worker` or `engine`.

pub mod alignment;
pub mod checkpoint;
pub mod corpus;
pub mod curve;
pub mod device;
pub mod embed;
pub mod examples;
pub mod export;
pub mod memory;
pub mod noun_bank;
pub mod nouns;
mod request;
pub mod settings;
pub mod token_states;
pub mod tokenizer;
pub mod trainer;
pub mod warm_start;

use std::fs;
use std::path::Path;

use tracing::info;

use crate::encoder::EncoderConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::model::local::LocalSource;
use crate::text_tower::TextTower;
use checkpoint::{Checkpoints, Run};
use corpus::Corpus;
use curve::Epoch;
use examples::Examples;
use export::Constants;
use noun_bank::NounBank;
use nouns::Nouns;
pub use request::Request;
use settings::Settings;
use token_states::TokenStates;
use trainer::Trainer;
use warm_start::WarmStart;

/// Trains and writes the bundle; returns the losses after each epoch.
///
/// # Errors
/// `ErrorKind::Config` for an unusable corpus, settings or checkpoint; `ErrorKind::Runtime` after a
/// stop, with a checkpoint written; errors of the encoder, the corpus and the export.
pub fn run(request: &Request) -> Result<Vec<Epoch>> {
    let settings = &request.settings;
    export::check_out(&request.out)?;
    let device = request.device.device()?;
    let notes = request.notes.as_deref().map(read_notes).transpose()?;
    let encoder = EncoderConfig::open(&request.encoder)?;
    let mut corpus = Corpus::read(&request.corpora, settings)?;
    let warm_start = request.from.as_deref().map(WarmStart::open).transpose()?;
    let tokenizer = match &warm_start {
        Some(start) => start.tokenizer.clone(),
        None => tokenizer::train(&corpus.captions, settings.vocab_size)?,
    };
    let mut tokens = tokenizer::encode(&tokenizer, &corpus.all_captions())?;
    corpus.drop_too_long(&mut tokens, settings.shape.max_length)?;
    info!(
        captions = corpus.captions.len(),
        held_out = corpus.held_out.len(),
        skipped = %corpus.skipped,
        "read the corpus"
    );
    create_dir(&request.cache)?;
    let (examples, memory) = build_examples(request, &encoder, &corpus, tokens)?;
    let (training, dim) = (&examples.embeddings[..examples.split * examples.dim], examples.dim);
    let alignment = alignment::build(training, dim, &settings.alignment)?;
    let checkpoints = Checkpoints::new(
        &request.checkpoint,
        Run {
            settings: settings.clone(),
            corpus: corpus.digest.clone(),
            encoder: format!("{} {}", encoder.name, encoder.version),
            from: warm_start.as_ref().map(|start| start.digest.clone()),
        },
    );
    let vocab_size = tokenizer.get_vocab_size(true);
    let stop = &request.stop;
    let trainer = Trainer::new(settings, &examples, &memory, vocab_size, checkpoints, stop, device);
    let outcome = trainer.run(request.resume, warm_start.as_ref())?;
    if let Some(speed) = outcome.tokens_per_second {
        info!(tokens_per_second = speed.round(), steps = outcome.steps, "trained");
    }
    export::write(&export::Parts {
        request,
        encoder: &encoder,
        corpus: &corpus,
        tokenizer: &tokenizer,
        constants: Constants {
            embedding_dim: dim,
            patches: encoder.num_patches,
            memory: &memory,
            alignment,
            nouns: &examples.nouns.embeddings,
        },
        from: warm_start.as_ref().map(|start| start.digest.as_str()),
        notes: notes.as_deref(),
        outcome: &outcome,
    })?;
    Ok(outcome.curve)
}

/// The training examples, and the projection's memory.
fn build_examples(
    request: &Request,
    encoder: &EncoderConfig,
    corpus: &Corpus,
    tokens: Vec<Vec<u16>>,
) -> Result<(Examples, Vec<f32>)> {
    let settings = &request.settings;
    let dim = encoder.embedding_dim;
    let embed = |what, texts: &[String]| {
        embed::embed(what, &request.encoder, encoder, texts, &request.cache, &request.runtime)
    };
    let all = corpus.all_captions();
    let embeddings = embed("embedding captions", &all)?;
    let split = corpus.captions.len();
    let memory =
        memory::build(&embeddings[..split * dim], dim, &settings.projection, settings.seed);
    let (found, noun_embeddings) = if settings.reads_nouns() {
        let found = find_nouns(&all, settings)?;
        let embeddings = embed("embedding nouns", &found.names)?;
        (found, embeddings)
    } else {
        Default::default()
    };
    let token_states = match settings.local.source {
        LocalSource::Tokens if settings.local.enabled => {
            let length = encoder.text_max_length;
            let tower = TextTower::open(&request.encoder, length, &request.runtime)?;
            Some(TokenStates::new(tower, all, dim))
        }
        _ => None,
    };
    let examples = Examples {
        tokens,
        embeddings,
        dim,
        split,
        nouns: NounBank::new(found, noun_embeddings, dim),
        token_states,
    };
    Ok((examples, memory))
}

fn find_nouns(captions: &[String], settings: &Settings) -> Result<Nouns> {
    let found = Nouns::find(captions, &settings.local);
    if found.names.is_empty() {
        return Err(Error::new(ErrorKind::Config, "no noun occurs in enough captions")
            .with_context("local.noun_count", settings.local.noun_count)
            .with_context(
                "allowed",
                "a lower local.noun_count, or local.enabled and mixture noise off",
            ));
    }
    info!(nouns = found.names.len(), "found nouns");
    Ok(found)
}

fn read_notes(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| {
        Error::new(ErrorKind::Config, "can't read the notes for the model card")
            .with_context("path", path.display())
            .with_source(error)
    })
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| {
        Error::new(ErrorKind::Io, "can't create a directory")
            .with_context("path", path.display())
            .with_source(error)
    })
}
