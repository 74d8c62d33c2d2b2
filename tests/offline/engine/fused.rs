//! `models/tiny` was exported before attention was one operator. Its decoder, exported again from
//! its own weights, gives the same captions in any batch, and so do its variants.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use fusioncap::bundle::variants::Reduced;
use fusioncap::bundle::{self, Bundle, DECODER};
use fusioncap::engine::Caption;
use fusioncap::onnx::decoder::{self, DecoderWeights, LayerWeights, Linear, Norm};
use fusioncap::onnx::initializers::{self, Initializer};
use fusioncap::onnx::variant;
use kit::root;
use tempfile::TempDir;

use super::{assert_company_changes_nothing, captions, copy_tree, load};

struct Weights(HashMap<String, Initializer>);

impl Weights {
    fn get(&self, name: &str) -> Vec<f32> {
        self.0[name].values.clone()
    }

    fn norm(&self, name: &str) -> Norm {
        let part = |part: &str| self.get(&format!("{name}.{part}"));
        Norm { scale: part("scale"), bias: part("bias") }
    }

    fn linear(&self, name: &str) -> Linear {
        let part = |part: &str| self.get(&format!("{name}.{part}"));
        Linear { weight: part("weight"), bias: part("bias") }
    }

    fn layer(&self, index: usize) -> LayerWeights {
        LayerWeights {
            attention_norm: self.norm(&format!("{index}.attention_norm")),
            query_key_value: self.linear(&format!("{index}.query_key_value")),
            attention_output: self.linear(&format!("{index}.attention_output")),
            feed_forward_norm: self.norm(&format!("{index}.feed_forward_norm")),
            expand: self.linear(&format!("{index}.expand")),
            contract: self.linear(&format!("{index}.contract")),
        }
    }
}

/// `models/tiny` with its decoder as this version writes it.
fn rewritten() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&root("models/tiny"), copy.path());
    let config = Bundle::open(copy.path()).unwrap().config;
    let path = copy.path().join(DECODER);
    let weights = Weights(initializers::read(&path).unwrap());
    let bytes = decoder::write(&DecoderWeights {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: weights.0["0.expand.bias"].values.len(),
        heads: config.num_attention_heads,
        epsilon: 1e-5,
        candidates: config.num_candidates,
        tokens: weights.get("tokens"),
        positions: weights.get("positions"),
        layers: (0..config.num_hidden_layers).map(|index| weights.layer(index)).collect(),
        norm: weights.norm("norm"),
    });
    fs::write(&path, bytes).unwrap();
    bundle::seal(copy.path()).unwrap();
    copy
}

fn assert_same(dir: &Path, expected: &[Caption], score: f32) {
    let found = captions(Bundle::open(dir).unwrap());
    let equal = found.iter().zip(expected).filter(|(left, right)| {
        left.text == right.text && (left.score - right.score).abs() < score
    });
    assert!(equal.count() + 3 >= expected.len(), "{found:?}\n{expected:?}");
}

#[test]
fn a_decoder_exported_again_gives_the_same_captions() {
    let expected = captions(Bundle::open(&root("models/tiny")).unwrap());
    let model = rewritten();
    let found = captions(Bundle::open(model.path()).unwrap());
    for (left, right) in found.iter().zip(&expected) {
        assert_eq!(left.text, right.text);
        assert!((left.score - right.score).abs() < 1e-3, "{left:?} {right:?}");
    }
    assert_company_changes_nothing(load(Bundle::open(model.path()).unwrap()), "exported again");
    let origin = Bundle::open(model.path()).unwrap();
    for (precision, score) in [(Reduced::Fp16, 0.02), (Reduced::Int8, 0.1)] {
        let made = variant::write(&origin, precision, "").unwrap();
        assert_same(made.dir(), &expected, score);
    }
}
