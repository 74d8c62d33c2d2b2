//! Imports existing ONNX exports with Optimum's file names, if they have the required outputs. Most
//! do not: exports for retrieval have no patch embeddings, and their `last_hidden_state` is not in
//! the joint embedding space.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ort::session::SessionInputValue;
use ort::value::Tensor;
use prost::Message;
use sha2::{Digest, Sha256};

use super::error::{refusal, unwritable};
use crate::bundle::{TEXT, VISION};
use crate::config::Runtime;
use crate::encoder::EncoderConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::external;
use crate::onnx::graph::{self, Dim};
use crate::onnx::proto::{DataType, ModelProto, StringStringEntryProto};
use crate::onnx::subgraph;

/// Both towers in one file.
const COMBINED: &str = "model.onnx";
const ATTENTION_MASK: &str = "attention_mask";
/// More than one, to detect a fixed batch size.
const BATCH: usize = 2;
const TOKENS: usize = 4;

/// The file, the required inputs and outputs, and the target of a tower.
struct Tower {
    file: &'static str,
    inputs: &'static [&'static str],
    outputs: [&'static str; 2],
    target: &'static str,
}

const TOWERS: [Tower; 2] = [
    Tower {
        file: "vision_model.onnx",
        inputs: &["pixel_values"],
        outputs: ["image_embeds", "patch_embeds"],
        target: VISION,
    },
    Tower {
        file: "text_model.onnx",
        inputs: &["input_ids", ATTENTION_MASK],
        outputs: ["text_embeds", "token_embeds"],
        target: TEXT,
    },
];

/// Copies the towers from the exports in `source` to `out`, and runs them once to set the width and
/// the number of patches in `encoder`.
///
/// # Errors
/// `ErrorKind::Config` with the missing files or outputs, or an unsupported input; `Runtime` without
/// ONNX Runtime.
pub fn copy(
    source: &Path,
    out: &Path,
    encoder: &mut EncoderConfig,
    runtime: &Runtime,
) -> Result<()> {
    let [vision, text] = TOWERS;
    let towers = [Export::find(source, vision)?, Export::find(source, text)?];
    check_outputs(source, &towers)?;
    for export in &towers {
        export.write(&out.join(export.tower.target))?;
    }
    probe(&towers, out, encoder, runtime)
}

/// The export of a tower.
struct Export {
    tower: Tower,
    path: PathBuf,
    model: ModelProto,
}

impl Export {
    fn find(source: &Path, tower: Tower) -> Result<Self> {
        let folders = [source.join("onnx"), source.to_path_buf()];
        let mut places =
            folders.iter().flat_map(|folder| [folder.join(tower.file), folder.join(COMBINED)]);
        let Some(path) = places.find(|path| path.is_file()) else {
            return Err(no_model_error(source, &tower));
        };
        let model = subgraph::read(&path)?;
        Ok(Self { tower, path, model })
    }

    /// A description of the missing outputs; None if there are none.
    fn missing_outputs(&self) -> Option<String> {
        let found = subgraph::output_names(&self.model);
        let wanted = self.tower.outputs.into_iter();
        let missing: Vec<&str> =
            wanted.filter(|wanted| !found.iter().any(|name| name == wanted)).collect();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        (!missing.is_empty()).then(|| {
            format!("{name} lacks {} (its outputs: {})", missing.join(", "), found.join(", "))
        })
    }

    /// Writes the tower's part of the model to `target`.
    fn write(&self, target: &Path) -> Result<()> {
        let Self { tower, path, model } = self;
        let mut part = model.clone();
        subgraph::keep_outputs(&mut part, &tower.outputs);
        let inputs = subgraph::input_names(&part);
        if let Some(other) = inputs.iter().find(|name| !tower.inputs.contains(&name.as_str())) {
            return Err(refusal("an ONNX export has an unsupported input", path)
                .with_context("input", other)
                .with_context("allowed", tower.inputs.join(", ")));
        }
        // A causal tower that pools at the end token does not need the mask.
        let is_missing = |name: &str| !inputs.iter().any(|input| input == name);
        if tower.inputs.contains(&ATTENTION_MASK) && is_missing(ATTENTION_MASK) {
            let shape = [Dim::Free("batch"), Dim::Free("tokens")];
            let mask = graph::value_info(ATTENTION_MASK, DataType::Int64, &shape);
            subgraph::add_input(&mut part, mask);
        }
        let data = external::data_path(target);
        let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(from) = subgraph::rename_data(&mut part, path, &name)? {
            fs::copy(&from, &data).map_err(|error| {
                refusal("can't copy an export's weights", &from).with_source(error)
            })?;
            let value = digest(&data).map_err(|error| unwritable(&data, error))?;
            part.metadata_props
                .push(StringStringEntryProto { key: external::DIGEST.into(), value });
        }
        fs::write(target, part.encode_to_vec()).map_err(|error| unwritable(target, error))
    }
}

fn no_model_error(source: &Path, tower: &Tower) -> Error {
    let pickled = source.join("pytorch_model.bin");
    if pickled.is_file() {
        return refusal(
            "the weights are pickled; convert them to safetensors with transformers: \
             CLIPModel.from_pretrained(DIR).save_pretrained(DIR)",
            &pickled,
        );
    }
    let allowed = format!(
        "model.safetensors, its shards with an index, onnx/{COMBINED} or onnx/{}",
        tower.file
    );
    refusal("the directory has neither weights nor ONNX exports", source)
        .with_context("allowed", allowed)
}

fn check_outputs(source: &Path, towers: &[Export; 2]) -> Result<()> {
    let lacking: Vec<String> = towers.iter().filter_map(Export::missing_outputs).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(refusal(
        "the ONNX exports lack outputs that training needs; import the directory with \
         model.safetensors instead",
        source,
    )
    .with_context("missing", lacking.join("; ")))
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}

/// Runs both towers in `out` on blank inputs.
fn probe(
    towers: &[Export; 2],
    out: &Path,
    encoder: &mut EncoderConfig,
    runtime: &Runtime,
) -> Result<()> {
    // A missing library is not an error of the exports.
    crate::runtime::environment(runtime)?;
    let side = encoder.image_size;
    let blank = |error: ort::Error| {
        Error::new(ErrorKind::Runtime, "can't create a blank input").with_source(error)
    };
    let pixels = vec![0.0_f32; BATCH * 3 * side * side];
    let image = Tensor::from_array(([BATCH, 3, side, side], pixels)).map_err(blank)?;
    let tokens = |value: i64| {
        Tensor::from_array(([BATCH, TOKENS], vec![value; BATCH * TOKENS])).map_err(blank)
    };
    let [vision, text] = towers;
    let [image_embeds, patch_embeds] =
        vision.run(out, vec![("pixel_values", image.into())], runtime)?;
    let inputs = vec![("input_ids", tokens(0)?.into()), (ATTENTION_MASK, tokens(1)?.into())];
    let [text_embeds, token_embeds] = text.run(out, inputs, runtime)?;

    let size = |shape: &[i64], axis: usize| shape.get(axis).copied().unwrap_or_default();
    let (width, patches) = (size(&image_embeds, 1), size(&patch_embeds, 1));
    let (batch, length) = (BATCH as i64, TOKENS as i64);
    let expected: [&[i64]; 4] =
        [&[batch, width], &[batch, patches, width], &[batch, width], &[batch, length, width]];
    let found = [&image_embeds, &patch_embeds, &text_embeds, &token_embeds];
    let fit = found.iter().zip(expected).all(|(shape, wanted)| shape.as_slice() == wanted);
    if !fit || width < 1 || patches < 1 {
        return Err(refusal("the ONNX exports' outputs have unexpected shapes", &vision.path)
            .with_context("found", format!("{found:?}"))
            .with_context("expected", format!("{expected:?}")));
    }
    (encoder.embedding_dim, encoder.num_patches) = (width as usize, patches as usize);
    Ok(())
}

impl Export {
    /// The shapes of the tower's outputs for `inputs`.
    fn run(
        &self,
        out: &Path,
        inputs: Vec<(&str, SessionInputValue<'_>)>,
        runtime: &Runtime,
    ) -> Result<[Vec<i64>; 2]> {
        let mut session = crate::runtime::session(runtime, &out.join(self.tower.target))
            .map_err(|error| refusal("can't load an ONNX export", &self.path).with_source(error))?;
        let failed =
            |error: ort::Error| refusal("can't run an ONNX export", &self.path).with_source(error);
        let outputs = session.run(inputs).map_err(failed)?;
        let shape = |name: &str| match outputs[name].try_extract_tensor::<f32>() {
            Ok((shape, _)) => Ok(shape.to_vec()),
            Err(error) => Err(failed(error)),
        };
        let [whole, parts] = self.tower.outputs;
        Ok([shape(whole)?, shape(parts)?])
    }
}
