//! CLIP's vision tower in reduced precision, with and without external data.

use std::fs;
use std::path::Path;

use fusioncap::bundle::VISION;
use fusioncap::bundle::variants::Reduced;
use fusioncap::encoder::clip::tower::Storage;
use fusioncap::onnx::external::data_path;
use fusioncap::onnx::graph::Precision;
use fusioncap::onnx::proto::{DataType, ModelProto};
use fusioncap::onnx::variant;
use prost::Message;

use super::source::{Encoder, Source};

fn load(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

fn count(model: &ModelProto, op: &str) -> usize {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes.iter().filter(|node| node.op_type == op).count()
}

fn assert_near(found: &[f32], expected: &[f32], least: f32) {
    let dot = |left: &[f32], right: &[f32]| -> f32 {
        left.iter().zip(right).map(|(left, right)| left * right).sum()
    };
    let lengths = (dot(found, found) * dot(expected, expected)).sqrt();
    let cosine = dot(found, expected) / lengths;
    assert!(cosine > least, "{cosine}");
}

/// Imports the fixture, rewrites its vision tower, and compares the embeddings.
fn rewritten(storage: Storage, inline_limit: usize, precision: Reduced) -> (Encoder, ModelProto) {
    let source = Source::new();
    let plain = source.import_as(storage, inline_limit).unwrap();
    let other = source.import_as(storage, inline_limit).unwrap();
    let path = other.path(VISION);
    let _ = fs::remove_file(data_path(&path));
    variant::rewrite(&plain.path(VISION), &path, precision).unwrap();
    let (before, after) = (plain.embed(), other.embed());
    for name in ["image_embeds", "patch_embeds"] {
        assert_near(&after[name], &before[name], 0.999);
    }
    let model = load(&path);
    (other, model)
}

#[test]
fn an_int8_vision_tower_is_close_to_the_original() {
    for (storage, limit) in
        [(Storage::Source, usize::MAX), (Storage::As(Precision::Half), 0), (Storage::Source, 0)]
    {
        let (_other, model) = rewritten(storage, limit, Reduced::Int8);
        assert_eq!(count(&model, "MatMul"), 0);
        assert!(count(&model, "MatMulNBits") > 6);
        assert_eq!(count(&model, "Conv"), 1);
    }
}

#[test]
fn an_fp16_vision_tower_is_close_to_the_original() {
    for (storage, limit) in [
        (Storage::Source, usize::MAX),
        (Storage::As(Precision::Half), 0),
        (Storage::As(Precision::Bfloat), usize::MAX),
    ] {
        let (_other, model) = rewritten(storage, limit, Reduced::Fp16);
        let weights = &model.graph.as_ref().unwrap().initializer;
        assert!(weights.iter().all(|tensor| tensor.data_type != DataType::Float as i32));
        // Its one input and its two outputs.
        assert_eq!(count(&model, "Cast"), 3);
    }
}
