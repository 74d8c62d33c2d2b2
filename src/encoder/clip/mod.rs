//! Imports a CLIP in the Hugging Face layout as an encoder directory: ONNX graphs written from
//! `model.safetensors`, or existing ONNX exports with the required outputs.
//!
//! ```text
//! DIR/config.json                    config        both towers' shapes
//! DIR/model.safetensors, shards      weights       ─► vision, text ─► onnx/vision.onnx, text.onnx
//! DIR/onnx/*.onnx                    exports       ─► the same, without weights
//! DIR/preprocessor_config.json       preprocess
//! DIR/tokenizer.json                 tokenizer
//! ```
//! Errors in DIR are `ErrorKind::Config`, since DIR is a command-line argument.

pub mod config;
mod exports;
mod preprocess;
mod text;
mod tokenizer;
pub mod tower;
mod vision;
mod weights;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{EncoderConfig, write_file};
use crate::bundle::{CARD, CONFIG, PREPROCESSOR_CONFIG, TEXT, TOKENIZER, VISION, write_json};
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::external;
use config::ClipConfig;
use tower::Storage;
use weights::Checkpoint;

/// The arguments of an import.
#[derive(Clone, Debug)]
pub struct Import {
    pub source: PathBuf,
    pub out: PathBuf,
    /// Name of the encoder; the default is the name of the source directory.
    pub name: Option<String>,
    pub storage: Storage,
    /// Maximum bytes of weights in a graph; larger graphs have external data.
    pub inline_limit: usize,
}

/// Writes the encoder directory.
///
/// # Errors
/// `ErrorKind::Config` if the source is not a usable CLIP or `out` holds other files; `Io` if it
/// can't be written.
pub fn import(request: &Import, runtime: &Runtime) -> Result<EncoderConfig> {
    let Import { source, out, .. } = request;
    if !source.is_dir() {
        return Err(Error::config_at("the CLIP directory does not exist", source));
    }
    check_out(out)?;
    let config = ClipConfig::open(source)?;
    let preprocessing = preprocess::read(source, &config.vision)?;
    let tokenizer = tokenizer::read(source, &config.text)?;
    // In a staging directory: a failed import leaves an existing encoder intact.
    let failed = |error: io::Error| Error::unwritable(out, error);
    fs::create_dir_all(out).map_err(failed)?;
    let staging = tempfile::Builder::new().prefix(".import-").tempdir_in(out).map_err(failed)?;
    let dir = staging.path();
    fs::create_dir(dir.join("onnx")).map_err(failed)?;
    let mut encoder = write_towers(request, &config, dir, runtime)?;
    write_json(&dir.join(PREPROCESSOR_CONFIG), &preprocessing)?;
    write_file(&dir.join(TOKENIZER), tokenizer.as_bytes())?;
    encoder.version = fingerprint(dir)?;
    encoder.write(dir)?;
    replace(dir, out).map_err(failed)?;
    Ok(encoder)
}

/// Checks that `out` does not exist, is empty, or holds an encoder to replace.
fn check_out(out: &Path) -> Result<()> {
    let occupied = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && EncoderConfig::open(out).is_err() {
        return Err(Error::new(ErrorKind::Config, "--out holds files that are not an encoder")
            .with_context("path", out.display())
            .with_context("allowed", "a new or empty directory, or an encoder to replace"));
    }
    Ok(())
}

fn write_towers(
    request: &Import,
    config: &ClipConfig,
    dir: &Path,
    runtime: &Runtime,
) -> Result<EncoderConfig> {
    let mut encoder = EncoderConfig {
        model_type: "fusioncap-encoder".into(),
        name: encoder_name(request),
        version: String::new(),
        embedding_dim: config.projection_dim,
        num_patches: config.vision.num_patches(),
        image_size: config.vision.image_size,
        text_max_length: config.text.max_position_embeddings,
        sources: vec![source_description(request)],
    };
    let Some(checkpoint) = Checkpoint::find(&request.source)? else {
        exports::copy(&request.source, dir, &mut encoder, runtime)?;
        return Ok(encoder);
    };
    let save = |model, file| external::save(model, &dir.join(file), request.inline_limit);
    save(vision::write(&checkpoint, config, request.storage)?, VISION)?;
    save(text::write(&checkpoint, config, request.storage)?, TEXT)?;
    Ok(encoder)
}

/// Replaces the encoder in `out` by the one in `dir`.
fn replace(dir: &Path, out: &Path) -> io::Result<()> {
    // Removed first and written last: a directory without a configuration is not an encoder.
    remove_if_exists(&out.join(CONFIG))?;
    fs::create_dir_all(out.join("onnx"))?;
    for graph in [VISION, TEXT] {
        remove_if_exists(&external::data_path(&out.join(graph)))?;
        let data = external::data_path(&dir.join(graph));
        if data.is_file() {
            fs::rename(&data, external::data_path(&out.join(graph)))?;
        }
    }
    for name in [VISION, TEXT, PREPROCESSOR_CONFIG, TOKENIZER, CONFIG] {
        fs::rename(dir.join(name), out.join(name))?;
    }
    Ok(())
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn encoder_name(request: &Import) -> String {
    if let Some(name) = &request.name {
        return name.clone();
    }
    // Resolves `.` and `..`.
    let resolved = fs::canonicalize(&request.source).unwrap_or_else(|_| request.source.clone());
    resolved.file_name().map_or_else(|| "clip".into(), |name| name.to_string_lossy().into_owned())
}

/// The model's name, with the licence in its card.
fn source_description(request: &Import) -> String {
    let card = fs::read_to_string(request.source.join(CARD)).unwrap_or_default();
    let licence = licence(&card).unwrap_or("licence not stated");
    format!("{} (CLIP in the Hugging Face layout, {licence})", encoder_name(request))
}

/// `license:` in the front matter of a model card.
fn licence(card: &str) -> Option<&str> {
    let (front_matter, _) = card.strip_prefix("---\n")?.split_once("\n---")?;
    let value = front_matter.lines().find_map(|line| line.strip_prefix("license:"))?.trim();
    (!value.is_empty()).then_some(value)
}

/// The first 12 hexadecimal digits of the SHA-256 of both graphs.
fn fingerprint(out: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    for name in [VISION, TEXT] {
        let path = out.join(name);
        let mut read = || io::copy(&mut File::open(&path)?, &mut hasher);
        read().map_err(|error| {
            Error::new(ErrorKind::Io, "can't read")
                .with_context("path", path.display())
                .with_source(error)
        })?;
    }
    Ok(hex::encode(hasher.finalize()).chars().take(12).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_in_the_front_matter() {
        assert_eq!(licence("---\ntags: [a]\nlicense: mit\n---\n# CLIP\n"), Some("mit"));
        assert_eq!(licence("---\ntags: [a]\n---\nlicense: mit\n"), None);
        assert_eq!(licence("# CLIP\nlicense: mit\n"), None);
        assert_eq!(licence(""), None);
    }
}
