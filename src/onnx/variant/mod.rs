//! Reduced-precision variants of a bundle, rewritten from its graphs: `int8` for CPUs, `fp16` for
//! GPUs. Training data and settings are not needed.

mod float_values;
mod fp16;
mod int8;
mod model;

use std::fs;
use std::io;
use std::path::Path;

use crate::bundle::variants::{FOLDER, Reduced, Variant};
use crate::bundle::{self, Bundle, CARD, CONFIG, DECODER, ModelConfig, PREFIX, VISION};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::external::{self, INLINE_LIMIT};

/// Prefix of the staging directory.
const STAGING_PREFIX: &str = ".making-";
/// The decoder's key-value cache, which only the decoder reads.
const KV_CACHE: [&str; 2] = ["past", "present"];

/// Writes the variant of `origin`, replacing an existing one. The model card includes `note`.
///
/// # Errors
/// `ErrorKind::Config` if `origin` is itself a variant; `ErrorKind::Bundle` if a graph can't be
/// rewritten; `ErrorKind::Io` with the file that can't be written.
pub fn write(origin: &Bundle, precision: Reduced, note: &str) -> Result<Bundle> {
    if let Some(variant) = &origin.config.variant {
        return Err(Error::new(ErrorKind::Config, "a variant can't be made from a variant")
            .with_context("path", origin.dir().display())
            .with_context("made from", &variant.of));
    }
    let folder = origin.dir().join(FOLDER);
    let unwritable = |error: io::Error| failed(&folder, error);
    fs::create_dir_all(&folder).map_err(unwritable)?;
    let staging =
        tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(&folder).map_err(unwritable)?;
    write_files(staging.path(), origin, precision)?;
    write_card(staging.path(), origin, precision, note)?;
    let target = precision.folder(origin.dir());
    if target.exists() {
        fs::remove_dir_all(&target).map_err(|error| failed(&target, error))?;
    }
    // A temporary directory is private to its owner; a bundle must be readable by others.
    fs::create_dir(&target).map_err(|error| failed(&target, error))?;
    for entry in fs::read_dir(staging.path()).map_err(unwritable)? {
        let entry = entry.map_err(unwritable)?;
        fs::rename(entry.path(), target.join(entry.file_name())).map_err(unwritable)?;
    }
    Bundle::open(&target)
}

/// Rewrites the model card and the manifest, which changes the variant's digest.
///
/// # Errors
/// `ErrorKind::Io` with the file that can't be written.
pub fn describe(origin: &Bundle, precision: Reduced, note: &str) -> Result<Bundle> {
    let dir = precision.folder(origin.dir());
    write_card(&dir, origin, precision, note)?;
    Bundle::open(&dir)
}

/// Writes everything except the card and the manifest.
fn write_files(dir: &Path, origin: &Bundle, precision: Reduced) -> Result<()> {
    let graphs: &[&str] = match precision {
        Reduced::Int8 => &[VISION, PREFIX, DECODER],
        // The prefix determines the start of a caption, and takes almost no time.
        Reduced::Fp16 => &[VISION, DECODER],
    };
    // Rewritten with their graphs if still needed.
    let data: Vec<String> = graphs.iter().map(|name| format!("{name}.data")).collect();
    for name in origin.manifest()?.files.into_keys() {
        let target = dir.join(&name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        }
        if graphs.contains(&name.as_str()) {
            rewrite(&origin.path(&name), &target, precision)?;
        } else if ![CARD, CONFIG].contains(&name.as_str()) && !data.contains(&name) {
            copy(&origin.path(&name), &target)?;
        }
    }
    let variant = Some(Variant { precision, of: origin.digest().into() });
    bundle::write_json(&dir.join(CONFIG), &ModelConfig { variant, ..origin.config.clone() })
}

/// Rewrites the graph at `source` to `target`, with external data if it is large.
///
/// # Errors
/// `ErrorKind::Bundle` if the graph can't be read or rewritten; `ErrorKind::Io` with the file that
/// can't be written.
pub fn rewrite(source: &Path, target: &Path, precision: Reduced) -> Result<()> {
    let mut model = model::read(source)?;
    match precision {
        Reduced::Int8 => {
            int8::convert(&mut model);
        }
        Reduced::Fp16 => {
            fp16::convert(&mut model, &KV_CACHE)
                .map_err(|error| error.with_context("path", source.display()))?;
        }
    }
    external::save(model, target, INLINE_LIMIT)
}

fn write_card(dir: &Path, origin: &Bundle, precision: Reduced, note: &str) -> Result<()> {
    let how = match precision {
        Reduced::Int8 => {
            "Products with constant matrices are computed in 8 bits, with one scale per 64 (or 32) \
             entries of a column and of a row: ONNX Runtime's `MatMulNBits`, for CPUs. \
             Convolutions and everything else are unchanged."
        }
        Reduced::Fp16 => {
            "The vision tower, the decoder and its cache are in 16-bit floats, for GPUs. Scores, \
             norms and the prefix stay in 32 bits."
        }
    };
    let origin_card = fs::read_to_string(origin.path(CARD)).unwrap_or_default();
    // The front matter must come first.
    let (front, rest) =
        match origin_card.strip_prefix("---\n").and_then(|text| text.split_once("---\n")) {
            Some((front, rest)) => (format!("---\n{front}---\n\n"), rest.trim_start().to_owned()),
            None => (String::new(), origin_card),
        };
    let text = format!(
        "{front}# {name}, {precision}\n\n\
         Made by `fusioncap variant --precision {precision}` from the bundle `{digest}`, whose card \
         follows.\n\n{how}\n\n{note}\n\n{rest}",
        name = origin.config.name,
        digest = origin.digest(),
        note = note.trim_end(),
    );
    let path = dir.join(CARD);
    fs::write(&path, text).map_err(|error| failed(&path, error))?;
    bundle::seal(dir)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| failed(to, error).with_context("from", from.display()))
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "can't write the variant")
        .with_context("path", path.display())
        .with_source(error)
}
