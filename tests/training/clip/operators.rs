//! The graphs after ONNX Runtime's optimisation: every attention and every layer normalisation is
//! one operator.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fusioncap::bundle::{TEXT, VISION};
use fusioncap::config::Runtime;
use fusioncap::onnx::decoder::{self, DecoderWeights, LayerWeights, Linear, Norm};
use fusioncap::onnx::prefix::{self, Local, PrefixWeights};
use fusioncap::onnx::proto::ModelProto;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::source::Source;

/// The operator counts of the model at `path` after optimisation for the CPU.
fn operators(path: &Path) -> BTreeMap<String, usize> {
    let folder = tempfile::tempdir().unwrap();
    let optimised = folder.path().join("optimised.onnx");
    let environment = fusioncap::runtime::environment(&Runtime::default()).unwrap();
    let builder = Session::builder(environment).unwrap();
    let builder = builder.with_optimization_level(GraphOptimizationLevel::All).unwrap();
    let mut builder = builder.with_optimized_model_path(&optimised).unwrap();
    builder.commit_from_file(path).unwrap();
    let model = ModelProto::decode(fs::read(&optimised).unwrap().as_slice()).unwrap();
    let mut counts = BTreeMap::new();
    for node in model.graph.unwrap().node {
        *counts.entry(node.op_type).or_default() += 1;
    }
    counts
}

fn operators_of(bytes: &[u8]) -> BTreeMap<String, usize> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    operators(file.path())
}

fn assert_fused(counts: &BTreeMap<String, usize>, attentions: usize, norms: usize) {
    let count = |names: &[&str]| names.iter().filter_map(|name| counts.get(*name)).sum::<usize>();
    assert_eq!(count(&["Attention", "MultiHeadAttention"]), attentions, "{counts:?}");
    assert_eq!(count(&["LayerNormalization", "SkipLayerNormalization"]), norms, "{counts:?}");
    // Operators of decomposed attention and norms.
    assert_eq!(count(&["ReduceMean", "Pow", "Sqrt"]), 0, "{counts:?}");
}

fn softmaxes(counts: &BTreeMap<String, usize>) -> usize {
    counts.get("Softmax").copied().unwrap_or(0)
}

fn random(count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(count as u64);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn linear(inputs: usize, outputs: usize) -> Linear {
    Linear { weight: random(inputs * outputs), bias: random(outputs) }
}

fn norm(width: usize) -> Norm {
    Norm { scale: random(width), bias: random(width) }
}

#[test]
fn the_decoders_attention_is_one_operator_a_layer() {
    const WIDTH: usize = 16;
    for layers in [1, 3] {
        let layer = |_| LayerWeights {
            attention_norm: norm(WIDTH),
            query_key_value: linear(WIDTH, 3 * WIDTH),
            attention_output: linear(WIDTH, WIDTH),
            feed_forward_norm: norm(WIDTH),
            expand: linear(WIDTH, 2 * WIDTH),
            contract: linear(2 * WIDTH, WIDTH),
        };
        let counts = operators_of(&decoder::write(&DecoderWeights {
            vocab_size: 50,
            hidden_size: WIDTH,
            intermediate_size: 2 * WIDTH,
            heads: 2,
            epsilon: 1e-5,
            candidates: 8,
            tokens: random(50 * WIDTH),
            positions: random(12 * WIDTH),
            layers: (0..layers).map(layer).collect(),
            norm: norm(WIDTH),
        }));
        assert_fused(&counts, layers, 2 * layers + 1);
        assert_eq!(softmaxes(&counts), 0, "{counts:?}");
    }
}

/// The prefix's attention outputs its weights, so it stays decomposed: ONNX Runtime does not support
/// this output of `Attention` on CUDA.
#[test]
fn the_prefix_has_one_attention_with_its_weights() {
    const WIDTH: usize = 16;
    let counts = operators_of(&prefix::write(&PrefixWeights {
        embedding_dim: 8,
        hidden_size: WIDTH,
        prefix_length: 3,
        alignment: None,
        projection: None,
        inner: linear(8, 32),
        outer: linear(32, 3 * WIDTH),
        local: Some(Local {
            items: 4,
            patches: 9,
            nouns: None,
            heads: 2,
            queries: random(3 * WIDTH),
            query: linear(WIDTH, WIDTH),
            key_value: linear(8, 2 * WIDTH),
            nothing: random(2 * WIDTH),
            output: linear(WIDTH, WIDTH),
            gate: linear(2 * WIDTH, WIDTH),
        }),
    }));
    assert_eq!(softmaxes(&counts), 1, "{counts:?}");
    assert!(!counts.contains_key("Pow") && !counts.contains_key("Sqrt"), "{counts:?}");
    // The mean over the heads of the attention output.
    assert_eq!(counts.get("ReduceMean"), Some(&1), "{counts:?}");
}

#[test]
fn a_clips_attention_is_one_operator_a_layer() {
    let source = Source::new();
    let encoder = source.import();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(source.path("config.json")).unwrap()).unwrap();
    let layers = |part: &str| {
        let count = config[part]["num_hidden_layers"].as_u64().unwrap();
        usize::try_from(count).unwrap()
    };
    let (vision, text) = (layers("vision_config"), layers("text_config"));
    // One norm before and one after the layers; the text tower has only the latter.
    for (name, layers, norms) in [(VISION, vision, 2 * vision + 2), (TEXT, text, 2 * text + 1)] {
        let counts = operators(&encoder.path(name));
        assert_fused(&counts, layers, norms);
        assert_eq!(softmaxes(&counts), 0, "{counts:?}");
    }
}
