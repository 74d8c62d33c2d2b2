//! The model bundle: a directory in Hugging Face's layout with all files of a captioner, and a
//! manifest with the SHA-256 of each.
//!
//! ```text
//! config.json               ModelConfig: name, version, shapes, special tokens
//! generation_config.json    GenerationConfig: beam search settings
//! preprocessor_config.json  PreprocessorConfig: in the format of CLIP's image processor
//! tokenizer.json            the caption vocabulary, in the `tokenizers` format
//! onnx/vision.onnx          pixel_values -> image_embeds, patch_embeds
//! onnx/prefix.onnx          image_embeds, patch_embeds -> prefix
//! onnx/decoder.onnx         one step of beam search (see `engine`)
//! onnx/text.onnx            optional: the encoder's text tower (for CLIPScore)
//! text_tokenizer.json       its tokenizer
//! README.md                 the model card
//! manifest.json             Manifest: the digest of each file above
//! variants/<precision>/     bundles made from this one (see [`variants`]), not part of it
//! ```
//!
//! The digest of `manifest.json` identifies the model in every caption. [`Bundle::open`] verifies
//! every file against the manifest before anything is loaded; [`seal`] writes the manifest.

mod choose;
pub mod source;
mod temporary_dir;
pub mod variants;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::error::{Error, ErrorKind, Result};
use crate::message::Identity;
use temporary_dir::TemporaryDir;

pub const MANIFEST: &str = "manifest.json";
pub const CONFIG: &str = "config.json";
pub const GENERATION_CONFIG: &str = "generation_config.json";
pub const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const VISION: &str = "onnx/vision.onnx";
pub const PREFIX: &str = "onnx/prefix.onnx";
pub const DECODER: &str = "onnx/decoder.onnx";
/// The encoder's text tower, in a bundle and in an encoder directory.
pub const TEXT: &str = "onnx/text.onnx";
/// The text tower's tokenizer, in a bundle.
pub const TEXT_TOKENIZER: &str = "text_tokenizer.json";
pub const CARD: &str = "README.md";

const FORMAT: &str = "fusioncap-bundle/1";

/// Names, shapes and special tokens of a FusionCap (`config.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct ModelConfig {
    /// Always `fusioncap`.
    pub model_type: String,
    pub name: String,
    pub version: String,
    /// Width of the joint image-text space.
    pub embedding_dim: usize,
    /// Patch embeddings of an image.
    pub num_patches: usize,
    /// Prefix tokens before the caption.
    pub prefix_length: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub vocab_size: usize,
    /// Longest caption in tokens, including the begin token.
    pub max_length: usize,
    pub bos_token_id: i64,
    pub eos_token_id: i64,
    pub pad_token_id: i64,
    /// Candidates of one decoder step for an image: twice the largest beam width.
    pub num_candidates: usize,
    /// Longest text of the text tower in tokens; None without a text tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_max_length: Option<usize>,
    /// Set if the bundle is a variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<variants::Variant>,
}

impl ModelConfig {
    /// Refuses values that no graph can have; `path` is the file they come from.
    fn check(&self, path: &Path) -> Result<()> {
        const ANY: usize = 1 << 24;
        let token = 0..=self.vocab_size.saturating_sub(1).min(ANY);
        let id = |id: i64| usize::try_from(id).unwrap_or(usize::MAX);
        let fields = [
            ("embedding_dim", self.embedding_dim, 1..=ANY),
            ("prefix_length", self.prefix_length, 1..=ANY),
            ("hidden_size", self.hidden_size, 1..=ANY),
            ("num_hidden_layers", self.num_hidden_layers, 1..=ANY),
            ("num_attention_heads", self.num_attention_heads, 1..=self.hidden_size),
            ("vocab_size", self.vocab_size, 1..=ANY),
            ("max_length", self.max_length, 2..=ANY),
            ("bos_token_id", id(self.bos_token_id), token.clone()),
            ("eos_token_id", id(self.eos_token_id), token.clone()),
            ("pad_token_id", id(self.pad_token_id), token),
            ("num_candidates", self.num_candidates, 2..=self.vocab_size),
        ];
        match fields.into_iter().find(|(_, value, allowed)| !allowed.contains(value)) {
            None => Ok(()),
            Some((field, _, allowed)) => Err(bundle_error("a value is out of range", path)
                .with_context("field", field)
                .with_context("allowed", format!("{} to {}", allowed.start(), allowed.end()))),
        }
    }
}

/// Beam search settings (`generation_config.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct GenerationConfig {
    pub num_beams: usize,
    pub max_new_tokens: usize,
    /// A finished caption's log-probability is divided by its length to this power.
    pub length_penalty: f32,
    /// An n-gram of this size occurs at most once in a caption; 0 disables the check.
    pub no_repeat_ngram_size: usize,
}

/// Preprocessing, in the format of CLIP's image processor (`preprocessor_config.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct PreprocessorConfig {
    #[serde(default = "yes")]
    pub do_resize: bool,
    pub size: Size,
    /// Pillow's number of the resampling filter: 1 Lanczos, 2 bilinear, 3 bicubic.
    #[serde(default = "bicubic")]
    pub resample: u8,
    #[serde(default)]
    pub do_center_crop: bool,
    #[serde(default)]
    pub crop_size: Option<Size>,
    #[serde(default = "per_grey_level")]
    pub rescale_factor: f32,
    pub image_mean: [f32; 3],
    pub image_std: [f32; 3],
}

/// A target size in pixels: the shortest edge (keeps the aspect ratio), or both edges.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Size {
    ShortestEdge { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
    Square(u32),
}

fn yes() -> bool {
    true
}

fn bicubic() -> u8 {
    3
}

fn per_grey_level() -> f32 {
    1.0 / 255.0
}

/// The files of a bundle and their digests (`manifest.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Manifest {
    pub format: String,
    /// By path relative to the bundle, with `/`.
    pub files: BTreeMap<String, FileEntry>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct FileEntry {
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub bytes: u64,
}

/// A verified bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    digest: String,
    /// Removes the directory of a fetched bundle; None for a directory of the user.
    _temporary_dir: Option<Arc<TemporaryDir>>,
    pub config: ModelConfig,
    pub generation: GenerationConfig,
    pub preprocessor: PreprocessorConfig,
}

impl Bundle {
    /// Opens the bundle in `dir` and verifies every file against the manifest.
    ///
    /// # Errors
    /// `ErrorKind::Bundle`, which names the file that is missing, damaged or invalid.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(bundle_error("the model bundle's directory does not exist", dir));
        }
        let manifest_path = dir.join(MANIFEST);
        let manifest_bytes = read_file(&manifest_path)?;
        let manifest: Manifest = parse_json(&manifest_path, &manifest_bytes)?;
        if manifest.format != FORMAT {
            return Err(bundle_error("the bundle's format is not supported", &manifest_path)
                .with_context("format", &manifest.format)
                .with_context("supported", FORMAT));
        }
        for required in
            [CONFIG, GENERATION_CONFIG, PREPROCESSOR_CONFIG, TOKENIZER, VISION, PREFIX, DECODER]
        {
            if !manifest.files.contains_key(required) {
                return Err(bundle_error("the manifest lacks a required file", &manifest_path)
                    .with_context("file", required));
            }
        }
        for (name, entry) in &manifest.files {
            verify_file(dir, name, entry)?;
        }
        let config: ModelConfig = load_json(dir, CONFIG)?;
        if config.model_type != "fusioncap" {
            return Err(bundle_error("the bundle is not a FusionCap model", &dir.join(CONFIG))
                .with_context("model_type", &config.model_type));
        }
        config.check(&dir.join(CONFIG))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            digest: digest(&manifest_bytes),
            _temporary_dir: None,
            config,
            generation: load_json(dir, GENERATION_CONFIG)?,
            preprocessor: load_json(dir, PREPROCESSOR_CONFIG)?,
        })
    }

    /// `sha256:` and the hexadecimal digest of the manifest, which identifies the model in every
    /// caption.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn identity(&self) -> Identity {
        let ModelConfig { name, version, .. } = self.config.clone();
        Identity { name, version, digest: self.digest.clone() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the manifest, which lists all other files of the bundle.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` if it can't be read any more.
    pub fn manifest(&self) -> Result<Manifest> {
        load_json(&self.dir, MANIFEST)
    }

    /// Reads the tokenizer with the caption vocabulary.
    ///
    /// # Errors
    /// As [`read_tokenizer`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        read_tokenizer(&self.path(TOKENIZER))
    }

    /// The full path of a file of the bundle, for example [`VISION`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Reads the tokenizer in `path`. The `tokenizers` crate panics on some invalid files: files that
/// are not JSON are refused first, and a panic becomes an error.
///
/// # Errors
/// `ErrorKind::Bundle` if the file is not a tokenizer.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bytes = read_file(path)?;
    let _: IgnoredAny = parse_json(path, &bytes)?;
    let unusable = || bundle_error("the tokenizer can't be used", path);
    match catch_unwind(|| Tokenizer::from_bytes(&bytes)) {
        Ok(tokenizer) => tokenizer.map_err(|error| unusable().with_source(error)),
        Err(_) => Err(unusable().with_source("its parser panicked")),
    }
}

/// `sha256:` and the hexadecimal digest of a manifest.
fn digest(manifest: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(manifest)))
}

/// Writes `manifest.json` for the files in `dir`, without those of its variants.
///
/// # Errors
/// `ErrorKind::Io` if a file can't be read or the manifest can't be written.
pub fn seal(dir: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    collect_files(dir, dir, &mut files)?;
    let manifest = Manifest { format: FORMAT.into(), files };
    write_json(&dir.join(MANIFEST), &manifest)
}

/// Writes `value` as indented JSON with a final newline.
///
/// # Errors
/// `ErrorKind::Bundle` if it has no JSON form; `Io` if the file can't be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| {
        bundle_error("a value can't be written as JSON", path).with_source(error)
    })?;
    text.push('\n');
    fs::write(path, text).map_err(|error| Error::unwritable(path, error))
}

fn collect_files(root: &Path, dir: &Path, files: &mut BTreeMap<String, FileEntry>) -> Result<()> {
    let entries =
        fs::read_dir(dir).map_err(|error| io_error("can't list the directory", dir, error))?;
    for entry in entries {
        let path = entry.map_err(|error| io_error("can't list the directory", dir, error))?.path();
        if path.is_dir() {
            if path != root.join(variants::FOLDER) {
                collect_files(root, &path, files)?;
            }
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let name = relative.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
        if name == MANIFEST {
            continue;
        }
        files.insert(name, file_entry(&path)?);
    }
    Ok(())
}

fn verify_file(dir: &Path, name: &str, expected: &FileEntry) -> Result<()> {
    let relative = Path::new(name);
    let inside = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside {
        return Err(bundle_error("the manifest names a file outside the bundle", relative));
    }
    let path = dir.join(relative);
    if !path.is_file() {
        return Err(bundle_error("a file of the bundle is missing", &path));
    }
    let found = file_entry(&path)?;
    let damaged = || bundle_error("a file of the bundle is damaged", &path);
    if found.sha256 != expected.sha256 {
        return Err(damaged()
            .with_context("expected sha256", &expected.sha256)
            .with_context("found", &found.sha256));
    }
    if found.bytes != expected.bytes {
        return Err(damaged()
            .with_context("expected bytes", expected.bytes)
            .with_context("found", found.bytes));
    }
    Ok(())
}

fn file_entry(path: &Path) -> Result<FileEntry> {
    let mut file =
        fs::File::open(path).map_err(|error| io_error("can't read the file", path, error))?;
    let mut hasher = Sha256::new();
    let bytes = io::copy(&mut file, &mut hasher)
        .map_err(|error| io_error("can't read the file", path, error))?;
    Ok(FileEntry { sha256: hex::encode(hasher.finalize()), bytes })
}

fn load_json<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T> {
    let path = dir.join(name);
    parse_json(&path, &read_file(&path)?)
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path)
        .map_err(|error| bundle_error("can't read a file of the bundle", path).with_source(error))
}

fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        bundle_error("a file of the bundle can't be parsed", path).with_source(error)
    })
}

fn bundle_error(message: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Bundle, message).with_context("path", path.display())
}

fn io_error(message: &'static str, path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, message).with_context("path", path.display()).with_source(error)
}
