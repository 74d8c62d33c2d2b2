//! The model bundle: a directory in the Hugging Face habit that holds everything a captioner
//! needs, and a manifest with the SHA-256 of every file.
//!
//! ```text
//! config.json               ModelConfig: name, version, shapes, special tokens
//! generation_config.json    GenerationConfig: beam search settings
//! preprocessor_config.json  PreprocessorConfig: as CLIP's image processor writes it
//! tokenizer.json            the caption vocabulary, in the `tokenizers` format
//! onnx/vision.onnx          pixel_values -> image_embeds, patch_embeds
//! onnx/prefix.onnx          image_embeds, patch_embeds -> prefix
//! onnx/decoder.onnx         one step of beam search (see `engine::beam_search`)
//! onnx/text.onnx            the encoder's text tower, if the bundle carries it (for CLIPScore)
//! text_tokenizer.json       its tokenizer
//! README.md                 the model card
//! manifest.json             Manifest: the digest of each file above
//! variants/<precision>/     bundles made from this one (see [`variants`]), no part of it
//! ```
//!
//! The digest of `manifest.json` names the model in every caption. [`Bundle::open`] verifies
//! every file against it before anything is loaded; [`seal`] writes it.

pub mod source;
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

pub const MANIFEST: &str = "manifest.json";
pub const CONFIG: &str = "config.json";
pub const GENERATION_CONFIG: &str = "generation_config.json";
pub const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const VISION: &str = "onnx/vision.onnx";
pub const PREFIX: &str = "onnx/prefix.onnx";
pub const DECODER: &str = "onnx/decoder.onnx";
/// The encoder's text tower, here and in an encoder directory.
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
    /// Local embeddings an image has.
    pub num_patches: usize,
    /// Prefix tokens that the decoder reads before the caption.
    pub prefix_length: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub vocab_size: usize,
    /// Longest caption in tokens, the begin token included.
    pub max_length: usize,
    pub bos_token_id: i64,
    pub eos_token_id: i64,
    pub pad_token_id: i64,
    /// Candidates that one decoder step returns for an image; twice the widest beam.
    pub num_candidates: usize,
    /// Longest text in tokens of the text tower; absent from bundles that carry none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_max_length: Option<usize>,
    /// What the bundle is a variant of, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<variants::Variant>,
}

impl ModelConfig {
    /// Refuses shapes that no graph can have; `path` is where they come from.
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
                .with("field", field)
                .with("allowed", format!("{} to {}", allowed.start(), allowed.end()))),
        }
    }
}

/// Beam search settings (`generation_config.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct GenerationConfig {
    pub num_beams: usize,
    pub max_new_tokens: usize,
    /// Exponent of the length by which a finished caption's log-probability is divided.
    pub length_penalty: f32,
    /// No n-gram of this size occurs twice in a caption; 0 allows every repetition.
    pub no_repeat_ngram_size: usize,
}

/// Preprocessing as CLIP's image processor describes it (`preprocessor_config.json`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct PreprocessorConfig {
    #[serde(default = "yes")]
    pub do_resize: bool,
    pub size: Size,
    /// Pillow's number of the resampling filter: 2 bilinear, 3 bicubic, 1 Lanczos.
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

/// A target size: the shortest edge (aspect kept), or both edges (squashed).
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
    /// None for one that lies in a directory of the user's.
    fetched: Option<Arc<source::Fetched>>,
    pub config: ModelConfig,
    pub generation: GenerationConfig,
    pub preprocessor: PreprocessorConfig,
}

impl Bundle {
    /// Opens the bundle in `dir`, comparing every file with the manifest.
    ///
    /// # Errors
    /// `ErrorKind::Bundle`, naming the file that is missing, damaged or not understood.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(bundle_error("no model bundle: there is no such directory", dir));
        }
        let manifest_path = dir.join(MANIFEST);
        let manifest_bytes = read(&manifest_path)?;
        let manifest: Manifest = parse(&manifest_path, &manifest_bytes)?;
        if manifest.format != FORMAT {
            return Err(bundle_error("the bundle's format is not supported", &manifest_path)
                .with("format", &manifest.format)
                .with("supported", FORMAT));
        }
        for required in
            [CONFIG, GENERATION_CONFIG, PREPROCESSOR_CONFIG, TOKENIZER, VISION, PREFIX, DECODER]
        {
            if !manifest.files.contains_key(required) {
                return Err(bundle_error("the manifest lacks a required file", &manifest_path)
                    .with("file", required));
            }
        }
        for (name, entry) in &manifest.files {
            verify(dir, name, entry)?;
        }
        let config: ModelConfig = load(dir, CONFIG)?;
        if config.model_type != "fusioncap" {
            return Err(bundle_error("the bundle is no FusionCap", &dir.join(CONFIG))
                .with("model_type", &config.model_type));
        }
        config.check(&dir.join(CONFIG))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            digest: digest(&manifest_bytes),
            fetched: None,
            config,
            generation: load(dir, GENERATION_CONFIG)?,
            preprocessor: load(dir, PREPROCESSOR_CONFIG)?,
        })
    }

    /// `sha256:` and the hexadecimal digest of the manifest: the model's name in every caption.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn identity(&self) -> Identity {
        let ModelConfig { name, version, .. } = self.config.clone();
        Identity { name, version, digest: self.digest.clone() }
    }

    /// The directory that it is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that it consists of, beside the manifest itself.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` if the manifest can't be read any more.
    pub fn manifest(&self) -> Result<Manifest> {
        load(&self.dir, MANIFEST)
    }

    /// The caption vocabulary.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` if it can't be used.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        read_tokenizer(&self.path(TOKENIZER))
    }

    /// The full path of a file of the bundle, such as [`VISION`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The tokenizer in a file. The `tokenizers` crate panics on some files that are none: what is no
/// JSON is told before, what is left is contained.
///
/// # Errors
/// `ErrorKind::Bundle` if it can't be used.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bytes = read(path)?;
    let _: IgnoredAny = parse(path, &bytes)?;
    let unusable = || bundle_error("the tokenizer can't be used", path);
    match catch_unwind(|| Tokenizer::from_bytes(&bytes)) {
        Ok(read) => read.map_err(|error| unusable().because(error)),
        Err(_) => Err(unusable().because("it makes its parser panic")),
    }
}

/// `sha256:` and the digest of a manifest.
fn digest(manifest: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(manifest)))
}

/// Writes `manifest.json` over the files now in `dir`, those of its variants left out.
pub fn seal(dir: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    collect(dir, dir, &mut files)?;
    let manifest = Manifest { format: FORMAT.into(), files };
    write_json(&dir.join(MANIFEST), &manifest)
}

/// Writes `value` as indented JSON with a final newline.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| bundle_error("can't be written as JSON", path).because(error))?;
    text.push('\n');
    fs::write(path, text).map_err(|error| io_error("can't write", path, error))
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, FileEntry>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|error| io_error("can't list", dir, error))?;
    for entry in entries {
        let path = entry.map_err(|error| io_error("can't list", dir, error))?.path();
        if path.is_dir() {
            if path != root.join(variants::FOLDER) {
                collect(root, &path, files)?;
            }
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let name = relative.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
        if name == MANIFEST {
            continue;
        }
        files.insert(name, measure(&path)?);
    }
    Ok(())
}

fn verify(dir: &Path, name: &str, expected: &FileEntry) -> Result<()> {
    let relative = Path::new(name);
    let inside = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside {
        return Err(bundle_error("the manifest names a file outside the bundle", relative));
    }
    let path = dir.join(relative);
    if !path.is_file() {
        return Err(bundle_error("a file of the bundle is missing", &path));
    }
    let found = measure(&path)?;
    let damaged = || bundle_error("a file of the bundle is damaged", &path);
    if found.sha256 != expected.sha256 {
        return Err(damaged()
            .with("expected sha256", &expected.sha256)
            .with("found", &found.sha256));
    }
    if found.bytes != expected.bytes {
        return Err(damaged().with("expected bytes", expected.bytes).with("found", found.bytes));
    }
    Ok(())
}

fn measure(path: &Path) -> Result<FileEntry> {
    let mut file = fs::File::open(path).map_err(|error| io_error("can't read", path, error))?;
    let mut hasher = Sha256::new();
    let bytes =
        io::copy(&mut file, &mut hasher).map_err(|error| io_error("can't read", path, error))?;
    Ok(FileEntry { sha256: hex::encode(hasher.finalize()), bytes })
}

fn load<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T> {
    let path = dir.join(name);
    parse(&path, &read(&path)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path)
        .map_err(|error| bundle_error("can't read a file of the bundle", path).because(error))
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        bundle_error("a file of the bundle is not understood", path).because(error)
    })
}

fn bundle_error(message: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Bundle, message).with("path", path.display())
}

fn io_error(message: &'static str, path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, message).with("path", path.display()).because(error)
}
