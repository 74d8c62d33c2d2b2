//! A tiny encoder with random weights: every part of the contract and none of the sense. It
//! serves tests and trials in which the model is not the point; its text tower is the real
//! [`super::bert`], only small.

use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Map, Value as Json, json};

use super::bert::{self, BertConfig};
use super::weights::{Tensor, Weights};
use super::{EncoderConfig, TEXT, write_file};
use crate::bundle::{PREPROCESSOR_CONFIG, PreprocessorConfig, Size, TOKENIZER, VISION, write_json};
use crate::error::Result;
use crate::onnx::graph::{Attribute, Dim, Graph};
use crate::onnx::proto::DataType;

/// Side of the input in pixels.
const INPUT: usize = 32;
/// Side of a patch in pixels.
const PATCH: usize = 16;
const PATCHES: usize = (INPUT / PATCH) * (INPUT / PATCH);
/// Width of the joint space.
const WIDTH: usize = 32;
/// One token a byte, and the padding.
const VOCABULARY: usize = 257;
const TEXT_MAX_LENGTH: usize = 64;

/// Writes the encoder that `seed` determines to `out`.
///
/// # Errors
/// `ErrorKind::Io` if a file can't be written.
pub fn build(out: &Path, seed: u64) -> Result<()> {
    let mut sampler = Sampler { rng: StdRng::seed_from_u64(seed) };
    write_file(&out.join(VISION), &vision_tower(&mut sampler))?;
    let config = text_config();
    let weights = text_weights(&mut sampler, &config);
    write_file(&out.join(TEXT), &bert::text_tower(&weights, &config)?)?;
    write_json(&out.join(TOKENIZER), &tokenizer())?;
    write_json(&out.join(PREPROCESSOR_CONFIG), &preprocessing())?;
    EncoderConfig {
        model_type: "fusioncap-encoder".into(),
        name: format!("random-{seed}"),
        version: "1".into(),
        embedding_dim: WIDTH,
        num_patches: PATCHES,
        image_size: INPUT,
        text_max_length: TEXT_MAX_LENGTH,
        sources: vec![format!("random weights (seed {seed})")],
    }
    .write(out)
}

struct Sampler {
    rng: StdRng,
}

impl Sampler {
    /// Gaussian weights that keep the variance of what passes through; the first axis counts the
    /// outputs.
    fn layer(&mut self, shape: &[usize]) -> Tensor {
        let inputs: usize = shape.iter().skip(1).product();
        self.scaled(shape, 1.0 / (inputs.max(1) as f32).sqrt())
    }

    fn scaled(&mut self, shape: &[usize], sigma: f32) -> Tensor {
        let count = shape.iter().product();
        let mut draw = || -> f32 { StandardNormal.sample(&mut self.rng) };
        let data = (0..count).map(|_| sigma * draw()).collect();
        Tensor { shape: shape.to_vec(), data }
    }
}

/// Patches, one hidden layer; the image is the mean of its patches.
fn vision_tower(sampler: &mut Sampler) -> Vec<u8> {
    let mut graph = Graph::new("vision");
    let batch = Dim::Free("batch");
    let (side, width) = (Dim::Fixed(INPUT), Dim::Fixed(WIDTH));
    let pixels = graph.input("pixel_values", DataType::Float, &[batch, Dim::Fixed(3), side, side]);
    let filters = sampler.layer(&[WIDTH, 3, PATCH, PATCH]);
    let kernel = graph.weight("patch.weight", &filters.shape, &filters.data);
    let patches = graph.node(
        "Conv",
        &[&pixels, &kernel],
        &[
            ("kernel_shape", Attribute::Ints(vec![PATCH as i64; 2])),
            ("strides", Attribute::Ints(vec![PATCH as i64; 2])),
        ],
    );
    let flat = graph.reshape(&patches, &[0, WIDTH as i64, PATCHES as i64]);
    let rows = graph.transpose(&flat, &[0, 2, 1]);
    let active = graph.gelu(&rows);
    let matrix = sampler.layer(&[WIDTH, WIDTH]);
    let projection = graph.weight("projection.weight", &matrix.shape, &matrix.data);
    let patch_embeds = graph.matmul(&active, &projection);
    let axis = graph.ints(&[1]);
    let image_embeds =
        graph.node("ReduceMean", &[&patch_embeds, &axis], &[("keepdims", Attribute::Int(0))]);
    graph.output("image_embeds", &image_embeds, DataType::Float, &[batch, width]);
    graph.output(
        "patch_embeds",
        &patch_embeds,
        DataType::Float,
        &[batch, Dim::Fixed(PATCHES), width],
    );
    graph.finish()
}

fn text_config() -> BertConfig {
    BertConfig {
        hidden_size: WIDTH,
        intermediate_size: 2 * WIDTH,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: TEXT_MAX_LENGTH,
        type_vocab_size: 1,
        vocab_size: VOCABULARY,
        layer_norm_eps: 1e-12,
    }
}

fn text_weights(sampler: &mut Sampler, config: &BertConfig) -> Weights {
    let (width, wide) = (config.hidden_size, config.intermediate_size);
    let mut tensors = Vec::new();
    for (name, rows) in [
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ] {
        let table = sampler.scaled(&[rows, width], 1.0);
        tensors.push((format!("embeddings.{name}_embeddings.weight"), table));
    }
    let mut norms = vec!["embeddings.LayerNorm".to_string()];
    for index in 0..config.num_hidden_layers {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        for (part, inputs, outputs) in [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", width, wide),
            ("output.dense", wide, width),
        ] {
            tensors.push((name(&format!("{part}.weight")), sampler.layer(&[outputs, inputs])));
            tensors.push((name(&format!("{part}.bias")), filled(outputs, 0.0)));
        }
        norms.extend([name("attention.output.LayerNorm"), name("output.LayerNorm")]);
    }
    for norm in norms {
        tensors.push((format!("{norm}.weight"), filled(width, 1.0)));
        tensors.push((format!("{norm}.bias"), filled(width, 0.0)));
    }
    Weights::new(tensors, "random weights")
}

fn filled(length: usize, value: f32) -> Tensor {
    Tensor { shape: vec![length], data: vec![value; length] }
}

/// Byte-level BPE without a merge: each byte of any text is a token. Padding is token 0.
fn tokenizer() -> Json {
    let alphabet = byte_characters();
    let mut vocabulary = Map::from_iter([("[PAD]".to_string(), json!(0))]);
    vocabulary.extend(
        alphabet.iter().enumerate().map(|(byte, symbol)| (symbol.to_string(), json!(byte + 1))),
    );
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 0, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] }
    })
}

/// The printable stand-in of each byte, as GPT-2 assigns them: Latin-1's visible characters stand
/// for themselves, the others for themselves moved above U+00FF in order.
fn byte_characters() -> Vec<char> {
    let mut moved = '\u{100}'..;
    (0..=u8::MAX)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => moved.next().unwrap_or(char::REPLACEMENT_CHARACTER),
        })
        .collect()
}

fn preprocessing() -> PreprocessorConfig {
    let side = INPUT as u32;
    PreprocessorConfig {
        do_resize: true,
        size: Size::Exact { height: side, width: side },
        resample: 3,
        do_center_crop: false,
        crop_size: None,
        rescale_factor: 1.0 / 255.0,
        image_mean: [0.5; 3],
        image_std: [0.5; 3],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokenizers::Tokenizer;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_is_that_of_byte_level_tokenizers() {
        let expected: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
        assert_eq!(byte_characters().into_iter().collect::<HashSet<char>>(), expected);
    }

    #[test]
    fn every_byte_of_a_text_is_a_token() {
        let tokenizer: Tokenizer = tokenizer().to_string().parse().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), VOCABULARY);
        let text = "deux chats, à côté 猫";
        let encoding = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoding.len(), text.len());
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text);
    }
}
