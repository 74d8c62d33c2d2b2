//! The towers compute the same as `transformers`, in operators that ONNX Runtime fuses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fusioncap::bundle::TEXT;
use fusioncap::bundle::{PreprocessorConfig, Size, VISION};
use fusioncap::config::Runtime;
use fusioncap::onnx::proto::ModelProto;
use fusioncap::text_tower::TextTower;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use prost::Message;
use serde_json::json;

use super::source::{Source, difference, fixture, floats, read_tensors};

/// The requirement is 1e-4; the rest is for the summation order of other processors.
const CLOSE: f32 = 2e-5;

/// The outputs of `transformers`: the tensors of `file` with the prefix `prefix`.
fn expected(file: &str, prefix: &str) -> BTreeMap<&'static str, Vec<f32>> {
    let tensors = read_tensors(&fixture(file));
    ["image_embeds", "patch_embeds", "text_embeds", "token_embeds"]
        .into_iter()
        .map(|name| (name, floats(&tensors[&format!("{prefix}{name}")].2)))
        .collect()
}

#[test]
fn the_towers_equal_transformers() {
    let encoder = Source::new().import();
    let found = difference(&encoder.embed(), &expected("expected.safetensors", ""));
    assert!(found < CLOSE, "{found}");

    let config = encoder.config();
    assert_eq!((config.embedding_dim, config.num_patches, config.image_size), (40, 36, 48));
    assert_eq!(config.text_max_length, 24);
    let preprocessing: PreprocessorConfig =
        serde_json::from_slice(&fs::read(encoder.path("preprocessor_config.json")).unwrap())
            .unwrap();
    assert!(preprocessing.do_center_crop);
    assert_eq!(preprocessing.size, Size::Square(48));
    assert_eq!(preprocessing.image_mean[0], 0.481_454_66);
}

#[test]
fn every_activation_matches_its_name() {
    for name in ["gelu", "gelu_new"] {
        let source = Source::new();
        source.edit_config(|config| {
            config["vision_config"]["hidden_act"] = json!(name);
            config["text_config"]["hidden_act"] = json!(name);
        });
        let reference = expected("expected-activations.safetensors", &format!("{name}."));
        let found = difference(&source.import().embed(), &reference);
        assert!(found < CLOSE, "{name}: {found}");
    }
    // The tolerance distinguishes the two.
    let [exact, tanh] =
        ["gelu.", "gelu_new."].map(|prefix| expected("expected-activations.safetensors", prefix));
    assert!(difference(&exact, &tanh) > 5.0 * CLOSE);
}

/// The rows of `token_embeds` at `places`, one per text of `length` tokens.
fn rows(token_embeds: &[f32], length: usize, places: &[usize]) -> Vec<f32> {
    const WIDTH: usize = 40;
    places
        .iter()
        .enumerate()
        .flat_map(|(text, place)| &token_embeds[(text * length + place) * WIDTH..][..WIDTH])
        .copied()
        .collect()
}

#[test]
fn the_text_embedding_is_the_end_tokens() {
    // 498 is the end token in the configuration; 511 is the vocabulary's last token.
    let ids = vec![510, 498, 18, 498, 511, 510, 54, 511, 7, 498];
    let pooled = |eos: i64| {
        let source = Source::new();
        let encoder = source.import();
        source.edit_config(|config| config["text_config"]["eos_token_id"] = json!(eos));
        // The fixture's tokenizer always ends with 511.
        let tokenizer = fs::read_to_string(encoder.path("tokenizer.json")).unwrap();
        source.write("tokenizer.json", &tokenizer.replace("511", &eos_of_tokenizer(eos)));
        source.import().read(&[2, 5], ids.clone(), vec![1; 10])
    };
    let first = pooled(498);
    assert_eq!(first["text_embeds"], rows(&first["token_embeds"], 5, &[1, 4]));
    // With the old default `eos_token_id` 2 the largest id counts.
    let largest = pooled(2);
    assert_eq!(largest["text_embeds"], rows(&largest["token_embeds"], 5, &[4, 2]));
    assert_eq!(largest["token_embeds"], first["token_embeds"]);
}

fn eos_of_tokenizer(eos: i64) -> String {
    if eos == 2 { "511".into() } else { eos.to_string() }
}

#[test]
fn tokens_do_not_attend_to_later_tokens_and_padding() {
    let encoder = Source::new().import();
    let alone = encoder.read(&[1, 3], vec![510, 18, 511], vec![1; 3]);
    let padded = encoder.read(&[1, 5], vec![510, 18, 511, 77, 0], vec![1, 1, 1, 0, 0]);
    for (left, right) in alone["token_embeds"].iter().zip(&padded["token_embeds"]) {
        assert!((left - right).abs() < CLOSE);
    }
    // Without the mask later tokens attend to 77, earlier ones never do.
    let unmasked = encoder.read(&[1, 5], vec![510, 18, 511, 77, 0], vec![1; 5]);
    let (before, after) = (3 * 40, 4 * 40);
    let differ = |range: std::ops::Range<usize>| {
        let pairs = padded["token_embeds"][range.clone()].iter();
        pairs
            .zip(&unmasked["token_embeds"][range])
            .any(|(left, right)| (left - right).abs() > CLOSE)
    };
    assert!(!differ(0..before));
    assert!(differ(after..5 * 40));
}

#[test]
fn text_embeddings_have_unit_length() {
    let encoder = Source::new().import();
    let mut tower = TextTower::open(encoder.dir(), 24, &Runtime::default()).unwrap();
    let sentences = ["The  cat", "the cat", "a much longer text, which is cut at 24 tokens"];
    let embeddings = tower.embed(&sentences.map(str::to_owned)).unwrap();
    let [first, second, third] = embeddings.as_chunks::<40>().0 else { panic!("3 rows") };
    for row in [first, second, third] {
        let length = row.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let cosine = |left: &[f32], right: &[f32]| -> f32 {
        left.iter().zip(right).map(|(left, right)| left * right).sum()
    };
    // The normalizer removes case and spaces.
    assert!(cosine(first, second) > 0.999_99);
    assert!(cosine(first, third) < 0.99);
}

/// The operator counts of the graph at `path` after ONNX Runtime's optimisation.
fn optimised(path: &Path) -> BTreeMap<String, usize> {
    let runtime = Runtime::default();
    let environment = fusioncap::runtime::environment(&runtime).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("optimised.onnx");
    Session::builder(environment)
        .unwrap()
        // Higher levels depend on the processor.
        .with_optimization_level(GraphOptimizationLevel::Level2)
        .unwrap()
        .with_optimized_model_path(&written)
        .unwrap()
        .commit_from_file(path)
        .unwrap();
    let model = ModelProto::decode(fs::read(&written).unwrap().as_slice()).unwrap();
    let mut counts = BTreeMap::new();
    for node in model.graph.unwrap().node {
        *counts.entry(node.op_type).or_default() += 1;
    }
    counts
}

#[test]
fn onnx_runtime_fuses_the_operators() {
    let encoder = Source::new().import();
    let vision = optimised(&encoder.path(VISION));
    let count = |counts: &BTreeMap<String, usize>, name: &str| counts.get(name).copied();
    // Two norms per layer, one before and one after; the first is fused with the addition.
    assert_eq!(count(&vision, "LayerNormalization"), Some(2 * 3 + 1), "{vision:?}");
    assert_eq!(count(&vision, "SkipLayerNormalization"), Some(1), "{vision:?}");
    assert_eq!(count(&vision, "QuickGelu"), Some(3), "{vision:?}");
    assert_eq!(count(&vision, "Attention"), Some(3), "{vision:?}");
    let text = optimised(&encoder.path(TEXT));
    assert_eq!(count(&text, "LayerNormalization"), Some(2 * 2 + 1), "{text:?}");
    assert_eq!(count(&text, "QuickGelu"), Some(2), "{text:?}");
    assert_eq!(count(&text, "Attention"), Some(2), "{text:?}");
    // No unfused operator remains, and no cast of a weight.
    for counts in [&vision, &text] {
        for name in ["Sigmoid", "Softmax"] {
            assert_eq!(count(counts, name), None, "{counts:?}");
        }
    }
    assert_eq!(count(&vision, "Cast"), None, "{vision:?}");
}
