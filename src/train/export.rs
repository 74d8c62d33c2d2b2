//! Writes a trained model as a bundle: graphs, vocabulary, configuration, model card, manifest.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path};

use burn::module::Param;
use burn::nn;
use burn::tensor::Tensor;
use tokenizers::Tokenizer;

use super::corpus::Corpus;
use super::curve;
use super::request::Request;
use super::settings::{CANDIDATES, Settings};
use super::tokenizer::{BOS, EOS, PAD};
use super::trainer::Outcome;
use crate::bundle::variants::FOLDER;
use crate::bundle::{
    self, CARD, CONFIG, DECODER, GENERATION_CONFIG, MANIFEST, Manifest, ModelConfig, PREFIX,
    PREPROCESSOR_CONFIG, TEXT, TEXT_TOKENIZER, TOKENIZER, VISION,
};
use crate::encoder::EncoderConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::model::FusionCap;
use crate::model::decoder::{Block, EPSILON};
use crate::model::local::{LocalModule, LocalSource};
use crate::onnx::decoder::{self, DecoderWeights, LayerWeights, Linear, Norm};
use crate::onnx::external;
use crate::onnx::prefix::{self, Alignment, Local, NounTable, PrefixWeights, Projection};

/// The plot of the learning curves.
const CURVE: &str = "curve.svg";
/// Prefix of the staging directory in `out`.
const STAGING_PREFIX: &str = ".export-";

/// The contents of a bundle.
pub struct Parts<'a> {
    pub request: &'a Request,
    pub encoder: &'a EncoderConfig,
    pub corpus: &'a Corpus,
    pub tokenizer: &'a Tokenizer,
    pub constants: Constants<'a>,
    /// Digest of the bundle that was fine-tuned.
    pub from: Option<&'a str>,
    /// Additional text for the model card.
    pub notes: Option<&'a str>,
    pub outcome: &'a Outcome,
}

/// Inputs of the prefix graph that are not trained; row-major.
pub struct Constants<'a> {
    pub embedding_dim: usize,
    /// Local embeddings per image.
    pub patches: usize,
    /// `[captions, embedding_dim]`
    pub memory: &'a [f32],
    pub alignment: Option<Alignment>,
    /// `[nouns, embedding_dim]`
    pub nouns: &'a [f32],
}

/// Checks before training that `out` can become a bundle: it does not exist, is empty, or holds a
/// bundle or the staging directory of an interrupted export.
///
/// # Errors
/// `ErrorKind::Config` if `out` holds other files, which the manifest would then list.
pub fn check_out(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let ours = |name: &String| name == MANIFEST || name.starts_with(STAGING_PREFIX);
    if names.is_empty() || names.iter().any(ours) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "--out holds files that are not a bundle")
        .with_context("path", out.display())
        .with_context("allowed", "a new or empty directory, or a bundle to replace"))
}

/// Writes the bundle to a staging directory and seals it, then moves it over the bundle in
/// `request.out`, which stays intact if writing fails.
///
/// # Errors
/// `ErrorKind::Io` with the file that can't be written.
pub fn write(parts: &Parts<'_>) -> Result<()> {
    let out = &parts.request.out;
    let unwritable = |error: io::Error| failed(out, error);
    fs::create_dir_all(out).map_err(unwritable)?;
    // Inside `out`, which may be a mounted volume.
    let staging =
        tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(out).map_err(unwritable)?;
    write_to(staging.path(), parts)?;
    bundle::seal(staging.path())?;
    replace(staging.path(), out).map_err(unwritable)
}

fn write_to(dir: &Path, parts: &Parts<'_>) -> Result<()> {
    let Parts { request, tokenizer, outcome, .. } = parts;
    let settings = &request.settings;
    let model = &outcome.model;
    let onnx = dir.join("onnx");
    fs::create_dir_all(&onnx).map_err(|error| failed(&onnx, error))?;
    for name in [VISION, PREPROCESSOR_CONFIG] {
        copy(&request.encoder.join(name), &dir.join(name))?;
    }
    copy_data(&request.encoder.join(VISION), &dir.join(VISION))?;
    if request.text_tower {
        for (name, target) in [(TEXT, TEXT), (TOKENIZER, TEXT_TOKENIZER)] {
            copy(&request.encoder.join(name), &dir.join(target))?;
        }
        copy_data(&request.encoder.join(TEXT), &dir.join(TEXT))?;
    }
    let weights = prefix_weights(model, settings, &parts.constants)?;
    write_file(&dir.join(PREFIX), &prefix::write(&weights))?;
    let vocab_size = tokenizer.get_vocab_size(true);
    write_file(
        &dir.join(DECODER),
        &decoder::write(&decoder_weights(model, vocab_size, settings)?),
    )?;
    tokenizer.save(dir.join(TOKENIZER), true).map_err(|error| {
        Error::new(ErrorKind::Io, "can't write the tokenizer").with_source(error)
    })?;
    bundle::write_json(&dir.join(CONFIG), &model_config(parts, vocab_size))?;
    bundle::write_json(&dir.join(GENERATION_CONFIG), &settings.generation)?;
    write_file(&dir.join(CURVE), curve::render_svg(&outcome.curve)?.as_bytes())?;
    write_file(&dir.join(CARD), model_card(parts)?.as_bytes())
}

/// Replaces the bundle in `out` by the sealed bundle in `dir`.
fn replace(dir: &Path, out: &Path) -> io::Result<()> {
    let new = manifest_files(dir);
    let stale: Vec<String> = manifest_files(out).difference(&new).cloned().collect();
    // Removed first and written last: a directory without a manifest is not a bundle.
    remove_if_exists(&out.join(MANIFEST))?;
    for name in stale {
        remove_if_exists(&out.join(name))?;
    }
    // The variants belong to the old bundle.
    match fs::remove_dir_all(out.join(FOLDER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for name in new.iter().map(String::as_str).chain([MANIFEST]) {
        let target = out.join(name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::rename(dir.join(name), target)?;
    }
    remove_staging(out)
}

/// Removes the staging directories of this export and of interrupted ones.
fn remove_staging(out: &Path) -> io::Result<()> {
    for entry in fs::read_dir(out)? {
        let found = entry?;
        if found.file_name().to_string_lossy().starts_with(STAGING_PREFIX) {
            fs::remove_dir_all(found.path())?;
        }
    }
    Ok(())
}

/// The files in the manifest of `dir`, except paths outside it; empty without a manifest.
fn manifest_files(dir: &Path) -> BTreeSet<String> {
    let bytes = fs::read(dir.join(MANIFEST)).unwrap_or_default();
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
        return BTreeSet::new();
    };
    let inside = |name: &String| {
        Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
    };
    manifest.files.into_keys().filter(inside).collect()
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn model_config(parts: &Parts<'_>, vocab_size: usize) -> ModelConfig {
    let shape = &parts.request.settings.shape;
    let name = parts.request.out.file_name().map(|name| name.to_string_lossy().into_owned());
    ModelConfig {
        model_type: "fusioncap".into(),
        name: format!("fusioncap-{}", name.unwrap_or_default()),
        version: "1".into(),
        embedding_dim: parts.encoder.embedding_dim,
        num_patches: parts.encoder.num_patches,
        prefix_length: shape.prefix_length,
        hidden_size: shape.hidden_size,
        num_hidden_layers: shape.num_hidden_layers,
        num_attention_heads: shape.num_attention_heads,
        vocab_size,
        max_length: shape.max_length,
        bos_token_id: BOS,
        eos_token_id: EOS,
        pad_token_id: PAD,
        num_candidates: CANDIDATES,
        text_max_length: parts.request.text_tower.then_some(parts.encoder.text_max_length),
        variant: None,
    }
}

/// The weights of the prefix graph as plain arrays.
pub fn prefix_weights(
    model: &FusionCap,
    settings: &Settings,
    constants: &Constants<'_>,
) -> Result<PrefixWeights> {
    let (projection, shape) = (&settings.projection, &settings.shape);
    let local = model.local.as_ref();
    Ok(PrefixWeights {
        embedding_dim: constants.embedding_dim,
        hidden_size: shape.hidden_size,
        prefix_length: shape.prefix_length,
        alignment: constants.alignment.clone(),
        projection: projection.enabled.then(|| Projection {
            memory: constants.memory.to_vec(),
            temperature: projection.image_temperature,
            keep_embedding: projection.keep_embedding,
        }),
        inner: linear(&model.prefix.inner)?,
        outer: linear(&model.prefix.outer)?,
        local: local.map(|module| local_weights(module, settings, constants)).transpose()?,
    })
}

fn local_weights(
    module: &LocalModule,
    settings: &Settings,
    constants: &Constants<'_>,
) -> Result<Local> {
    let nouns = (settings.local.source == LocalSource::Nouns).then(|| NounTable {
        embeddings: constants.nouns.to_vec(),
        temperature: settings.local.temperature,
    });
    Ok(Local {
        items: settings.local.items,
        patches: constants.patches,
        nouns,
        heads: settings.shape.num_attention_heads,
        queries: values(&module.queries)?,
        query: linear(&module.query)?,
        key_value: linear(&module.key_value)?,
        nothing: values(&module.nothing)?,
        output: linear(&module.output)?,
        gate: linear(&module.gate)?,
    })
}

/// The weights of the decoder graph as plain arrays.
pub fn decoder_weights(
    model: &FusionCap,
    vocab_size: usize,
    settings: &Settings,
) -> Result<DecoderWeights> {
    let shape = &settings.shape;
    Ok(DecoderWeights {
        vocab_size,
        hidden_size: shape.hidden_size,
        intermediate_size: shape.intermediate_size,
        heads: shape.num_attention_heads,
        epsilon: EPSILON as f32,
        candidates: CANDIDATES,
        tokens: values(&model.decoder.tokens.weight)?,
        positions: values(&model.decoder.positions)?,
        layers: model.decoder.blocks.iter().map(layer).collect::<Result<_>>()?,
        norm: norm(&model.decoder.norm)?,
    })
}

fn layer(block: &Block) -> Result<LayerWeights> {
    Ok(LayerWeights {
        attention_norm: norm(&block.attention_norm)?,
        query_key_value: linear(&block.query_key_value)?,
        attention_output: linear(&block.attention_output)?,
        feed_forward_norm: norm(&block.feed_forward_norm)?,
        expand: linear(&block.expand)?,
        contract: linear(&block.contract)?,
    })
}

fn linear(layer: &nn::Linear) -> Result<Linear> {
    let weight = values(&layer.weight)?;
    let bias = match &layer.bias {
        Some(bias) => values(bias)?,
        None => vec![0.0; layer.weight.val().dims()[1]],
    };
    Ok(Linear { weight, bias })
}

fn norm(layer: &nn::LayerNorm) -> Result<Norm> {
    let scale = values(&layer.gamma)?;
    let bias = match &layer.beta {
        Some(beta) => values(beta)?,
        None => vec![0.0; scale.len()],
    };
    Ok(Norm { scale, bias })
}

fn values<const D: usize>(parameter: &Param<Tensor<D>>) -> Result<Vec<f32>> {
    parameter.val().try_into_vec_as::<f32>().map_err(|error| {
        Error::new(ErrorKind::Internal, "can't read a trained weight")
            .with_source(error.to_string())
    })
}

/// The model card, with front matter for model hubs.
fn model_card(parts: &Parts<'_>) -> Result<String> {
    let settings = &parts.request.settings;
    let corpora: Vec<String> = parts
        .request
        .corpora
        .iter()
        .filter_map(|path| Some(format!("`{}`", path.file_name()?.to_string_lossy())))
        .collect();
    let mut curve = String::new();
    for epoch in &parts.outcome.curve {
        let (training, held_out) = (epoch.training_loss, epoch.held_out_loss);
        // Writing to a string can't fail.
        let _ = writeln!(curve, "| {} | {training:.3} | {held_out:.3} |", epoch.epoch);
    }
    let sources: String =
        parts.encoder.sources.iter().map(|source| format!("- {source}\n")).collect();
    let toml = toml::to_string(settings).map_err(|error| {
        Error::new(ErrorKind::Internal, "can't write the settings").with_source(error)
    })?;
    Ok(format!(
        "---\npipeline_tag: image-to-text\nlibrary_name: fusioncap\nlanguage: en\n---\n\
         # {name}\n\n\
         A FusionCap image captioner, trained on text alone: no image was seen in training.\n\n\
         ## Encoder\n`{encoder}` {version}, frozen:\n{sources}\n\
         ## Corpus\n{corpora}: {captions} training captions, {held_out} held out, \
         skipped: {skipped}; SHA-256 `{digest}`.\n\n\
         {attribution}\
         ## Training\nSeed {seed}, {steps} steps{from}.\n\n\
         ![Loss by epoch]({CURVE})\n\n\
         | epoch | training loss | held-out loss |\n|---|---|---|\n{curve}\n\
         Losses are in nats per token; the training loss includes label smoothing. The unigram \
         entropy of the tokens is {unigram:.3}.\n\n\
         ```toml\n{toml}```\n{notes}",
        name = model_config(parts, 0).name,
        encoder = parts.encoder.name,
        version = parts.encoder.version,
        corpora = corpora.join(", "),
        captions = parts.corpus.captions.len(),
        held_out = parts.corpus.held_out.len(),
        skipped = parts.corpus.skipped,
        digest = parts.corpus.digest,
        attribution = attribution(&parts.request.corpora),
        seed = settings.seed,
        notes = parts.notes.map(|text| format!("\n{}\n", text.trim_end())).unwrap_or_default(),
        from = parts
            .from
            .map(|digest| format!(", fine-tuned from the bundle `{digest}`"))
            .unwrap_or_default(),
        steps = parts.outcome.steps,
        unigram = parts.outcome.unigram_entropy,
    ))
}

/// The text of `ATTRIBUTION.md` beside the corpus, which the model card must include.
fn attribution(corpora: &[std::path::PathBuf]) -> String {
    let notices = corpora.iter().filter_map(|path| Some(path.parent()?.join("ATTRIBUTION.md")));
    let mut files: Vec<_> = notices.filter(|path| path.is_file()).collect();
    files.dedup();
    files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| format!("{}\n\n", text.trim_end()))
        .collect()
}

/// Copies the external data of a large model, if it has any.
fn copy_data(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (external::data_path(from), external::data_path(to));
    if source.is_file() {
        copy(&source, &target)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| failed(to, error).with_context("from", from.display()))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "can't write the bundle")
        .with_context("path", path.display())
        .with_source(error)
}
