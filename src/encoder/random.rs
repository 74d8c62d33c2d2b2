//! A small encoder with random weights, for tests.
//!
//! Its embeddings are meaningless, but they are deterministic and differ between images. The vision
//! tower is a patch projection (Dosovitskiy et al. 2020), the text tower a mean of byte embeddings.

use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::{EncoderConfig, write_file};
use crate::bundle::{
    PREPROCESSOR_CONFIG, PreprocessorConfig, Size, TEXT, TOKENIZER, VISION, write_json,
};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::graph::{Attribute, Dim, Graph};
use crate::onnx::proto::DataType;

/// Side of the images in pixels, and of their patches.
const IMAGE: usize = 32;
const PATCH: usize = 8;
/// Patches per image.
const PATCHES: usize = (IMAGE / PATCH) * (IMAGE / PATCH);
/// Width inside the vision tower.
const CHANNELS: usize = 16;
/// Width of the joint embedding space.
const WIDTH: usize = 32;
/// Maximum text length in bytes.
const TEXT_MAX_LENGTH: usize = 128;
const PAD: &str = "[PAD]";
/// The padding token and one token per byte.
const VOCAB: usize = 257;

/// Writes the encoder of `seed` to the directory `out`.
pub fn build(out: &Path, seed: u64) -> Result<()> {
    let mut weights = Random(StdRng::seed_from_u64(seed));
    write_file(&out.join(VISION), &vision_tower(&mut weights))?;
    write_file(&out.join(TEXT), &text_tower(&mut weights))?;
    write_file(&out.join(TOKENIZER), tokenizer()?.as_bytes())?;
    let side = IMAGE as u32;
    let preprocessing = PreprocessorConfig {
        do_resize: true,
        size: Size::Exact { height: side, width: side },
        resample: 3,
        do_center_crop: false,
        crop_size: None,
        rescale_factor: 1.0 / 255.0,
        image_mean: [0.5; 3],
        image_std: [0.5; 3],
    };
    write_json(&out.join(PREPROCESSOR_CONFIG), &preprocessing)?;
    EncoderConfig {
        model_type: "fusioncap-encoder".into(),
        name: "random".into(),
        version: seed.to_string(),
        embedding_dim: WIDTH,
        num_patches: PATCHES,
        image_size: IMAGE,
        text_max_length: TEXT_MAX_LENGTH,
        sources: vec![format!("random weights, seed {seed}")],
    }
    .write(out)
}

/// Normally distributed weights.
struct Random(StdRng);

impl Random {
    /// `count` weights, scaled so that a sum over `inputs` weights has unit variance.
    fn draw(&mut self, count: usize, inputs: usize) -> Vec<f32> {
        let scale = 1.0 / (inputs as f32).sqrt();
        (0..count)
            .map(|_| {
                let normal: f32 = StandardNormal.sample(&mut self.0);
                scale * normal
            })
            .collect()
    }
}

/// `pixel_values` -> `image_embeds`, `patch_embeds`.
fn vision_tower(weights: &mut Random) -> Vec<u8> {
    let mut graph = Graph::new("vision");
    let (batch, width) = (Dim::Free("batch"), Dim::Fixed(WIDTH));
    let pixels = graph.input(
        "pixel_values",
        DataType::Float,
        &[batch, Dim::Fixed(3), Dim::Fixed(IMAGE), Dim::Fixed(IMAGE)],
    );
    let inputs = 3 * PATCH * PATCH;
    let kernel = graph.weight(
        "patches",
        &[CHANNELS, 3, PATCH, PATCH],
        &weights.draw(CHANNELS * inputs, inputs),
    );
    let side = PATCH as i64;
    let cells = graph.node(
        "Conv",
        &[&pixels, &kernel],
        &[
            ("kernel_shape", Attribute::Ints(vec![side, side])),
            ("strides", Attribute::Ints(vec![side, side])),
        ],
    );
    let bent = graph.node("Tanh", &[&cells], &[]);
    let rows = graph.reshape(&bent, &[0, CHANNELS as i64, PATCHES as i64]);
    let patches = graph.transpose(&rows, &[0, 2, 1]);
    let projection =
        graph.weight("projection", &[CHANNELS, WIDTH], &weights.draw(CHANNELS * WIDTH, CHANNELS));
    let patch_embeds = graph.matmul(&patches, &projection);
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

/// `input_ids`, `attention_mask` -> `text_embeds` of unit length, `token_embeds`.
fn text_tower(weights: &mut Random) -> Vec<u8> {
    let mut graph = Graph::new("text");
    let (batch, width) = (Dim::Free("batch"), Dim::Fixed(WIDTH));
    let tokens = [batch, Dim::Free("tokens")];
    let input_ids = graph.input("input_ids", DataType::Int64, &tokens);
    let attention_mask = graph.input("attention_mask", DataType::Int64, &tokens);
    let table = graph.weight("bytes", &[VOCAB, WIDTH], &weights.draw(VOCAB * WIDTH, WIDTH));
    let token_embeds = graph.gather(&table, &input_ids, 0);
    let mask = graph.cast(&attention_mask, DataType::Float);
    let row = graph.unsqueeze(&mask, &[1]);
    let sum = graph.matmul(&row, &token_embeds);
    let total = graph.squeeze(&sum, &[1]);
    let text_embeds = graph.l2_normalize(&total);
    graph.output("text_embeds", &text_embeds, DataType::Float, &[batch, width]);
    graph.output(
        "token_embeds",
        &token_embeds,
        DataType::Float,
        &[batch, Dim::Free("tokens"), width],
    );
    graph.finish()
}

/// A tokenizer with the padding token and one token per byte.
fn tokenizer() -> Result<String> {
    let failed =
        |error| Error::new(ErrorKind::Internal, "can't create the tokenizer").with_source(error);
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut names = std::iter::once(PAD.to_owned()).chain(alphabet.iter().map(char::to_string));
    let vocab: [(String, u32); VOCAB] =
        std::array::from_fn(|id| (names.next().unwrap_or_default(), id as u32));
    let model = BPE::builder().vocab_and_merges(vocab, Vec::new()).build().map_err(failed)?;
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(ByteLevel::default()))
        .build()
        .map_err(failed)?;
    tokenizer.add_special_tokens([AddedToken::from(PAD, true)]).map_err(failed)?;
    tokenizer.to_string(true).map_err(failed)
}
