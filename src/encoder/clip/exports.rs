//! Imports existing ONNX exports with Optimum's file names, if they have the required outputs. Most
//! do not: exports for retrieval have no patch embeddings, and their `last_hidden_state` is not in
//! the joint embedding space.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ort::session::SessionInputValue;
use ort::value::Tensor;
use prost::Message;
use sha2::{Digest, Sha256};

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
/// Bytes of weights that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

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
/// `ErrorKind::Config` with the missing files or outputs, or an unsupported input; `Io` with the file
/// that can't be written; `Runtime` without ONNX Runtime.
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
            return Err(Error::config_at("an ONNX export has an unsupported input", path)
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
            let value = copy_data(&from, &data)?;
            part.metadata_props
                .push(StringStringEntryProto { key: external::DIGEST.into(), value });
        }
        fs::write(target, part.encode_to_vec()).map_err(|error| Error::unwritable(target, error))
    }
}

fn no_model_error(source: &Path, tower: &Tower) -> Error {
    let pickled = source.join("pytorch_model.bin");
    if pickled.is_file() {
        return Error::config_at(
            "the weights are pickled; convert them to safetensors with transformers: \
             CLIPModel.from_pretrained(DIR).save_pretrained(DIR)",
            &pickled,
        );
    }
    let allowed = format!(
        "model.safetensors, its shards with an index, onnx/{COMBINED} or onnx/{}",
        tower.file
    );
    Error::config_at("the directory has neither weights nor ONNX exports", source)
        .with_context("allowed", allowed)
}

fn check_outputs(source: &Path, towers: &[Export; 2]) -> Result<()> {
    let lacking: Vec<String> = towers.iter().filter_map(Export::missing_outputs).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Error::config_at(
        "the ONNX exports lack outputs that training needs; import the directory with \
         model.safetensors instead",
        source,
    )
    .with_context("missing", lacking.join("; ")))
}

/// Copies a file of weights; returns its SHA-256.
///
/// # Errors
/// `ErrorKind::Config` with `from`, which can't be read; `Io` with `to`, which can't be written.
fn copy_data(from: &Path, to: &Path) -> Result<String> {
    let unreadable = |error: io::Error| {
        Error::config_at("can't copy an export's weights", from).with_source(error)
    };
    let unwritable = |error: io::Error| Error::unwritable(to, error);
    let mut source = File::open(from).map_err(unreadable)?;
    let mut target = File::create(to).map_err(unwritable)?;
    let mut hasher = Sha256::new();
    let mut bytes = Vec::with_capacity(COPY_BYTES);
    loop {
        bytes.clear();
        let mut next = Read::take(&mut source, COPY_BYTES as u64);
        if next.read_to_end(&mut bytes).map_err(unreadable)? == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&bytes);
        target.write_all(&bytes).map_err(unwritable)?;
    }
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
        return Err(Error::config_at(
            "the ONNX exports' outputs have unexpected shapes",
            &vision.path,
        )
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
        let mut session =
            crate::runtime::session(runtime, &out.join(self.tower.target)).map_err(|error| {
                Error::config_at("can't load an ONNX export", &self.path).with_source(error)
            })?;
        let failed = |error: ort::Error| {
            Error::config_at("can't run an ONNX export", &self.path).with_source(error)
        };
        let outputs = session.run(inputs).map_err(failed)?;
        let shape = |name: &str| match outputs[name].try_extract_tensor::<f32>() {
            Ok((shape, _)) => Ok(shape.to_vec()),
            Err(error) => Err(failed(error)),
        };
        let [whole, parts] = self.tower.outputs;
        Ok([shape(whole)?, shape(parts)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_copied_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(COPY_BYTES + 5).collect();
        fs::write(&from, &bytes).unwrap();
        assert_eq!(copy_data(&from, &to).unwrap(), hex::encode(Sha256::digest(&bytes)));
        assert_eq!(fs::read(&to).unwrap(), bytes);
    }

    #[test]
    fn a_full_disk_is_not_an_error_of_the_source() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("weights");
        fs::write(&from, [1; 10]).unwrap();
        let error = copy_data(&from, Path::new("/dev/full")).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Io, 1));
        assert_eq!(error.to_string(), "can't write (path: /dev/full)");

        let error = copy_data(&folder.path().join("absent"), &from).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Config, 2));
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
