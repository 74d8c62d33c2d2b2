//! Embeds the corpus with the encoder's text tower, cached on disk.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::bundle::{TEXT, TOKENIZER};
use crate::config::Runtime;
use crate::encoder::EncoderConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::text_tower::TextTower;

/// Unit-length embeddings of `captions` (or nouns), row-major `[captions, embedding_dim]`. The cache
/// in `folder` is keyed by the text tower, the tokenizer, the maximum length and the captions.
/// `label` names the work in the progress output.
///
/// # Errors
/// `ErrorKind::Io` for the encoder's files and the cache; errors of the text tower.
pub fn embed(
    label: &'static str,
    encoder_dir: &Path,
    encoder: &EncoderConfig,
    captions: &[String],
    folder: &Path,
    runtime: &Runtime,
) -> Result<Vec<f32>> {
    let mut hasher = Sha256::new();
    for name in [TEXT, TOKENIZER] {
        let path = encoder_dir.join(name);
        let bytes =
            fs::read(&path).map_err(|error| failed("can't read the encoder", &path, error))?;
        hasher.update(Sha256::digest(&bytes));
    }
    hasher.update((encoder.text_max_length as u64).to_le_bytes());
    for caption in captions {
        hasher.update(caption.as_bytes());
        hasher.update(b"\n");
    }
    let cache = folder.join(format!("embeddings-{}.f32", hex::encode(&hasher.finalize()[..8])));
    let expected = captions.len() * encoder.embedding_dim * size_of::<f32>();
    if let Ok(bytes) = fs::read(&cache)
        && bytes.len() == expected
    {
        let (words, _) = bytes.as_chunks::<4>();
        return Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect());
    }
    let mut tower = TextTower::open(encoder_dir, encoder.text_max_length, runtime)?;
    let progress = Progress::new(label, "texts", captions.len() as u64);
    let embeddings =
        tower.embed_with_progress(captions, |done| progress.set(done as u64, String::new()))?;
    progress.finish();
    let bytes: Vec<u8> = embeddings.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    // Renamed when complete: a killed run leaves no partial cache.
    let unfinished = cache.with_extension("part");
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, &cache))
        .map_err(|error| failed("can't write the embedding cache", &cache, error))?;
    Ok(embeddings)
}

fn failed(message: &'static str, path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, message).with_context("path", path.display()).with_source(error)
}
