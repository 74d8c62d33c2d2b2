//! The engine on an NVIDIA GPU against the engine on the CPU, and the errors where the GPU or a
//! library is missing. `make cuda-test`.
//!
//! A test that needs a GPU says so where there is none, and passes; with
//! `FUSIONCAP_TEST_GPU=required`, as `make cuda-test` sets it, it fails. The other tests hide the
//! GPU.

mod absent;
mod graphs;
mod same;

use std::fs;
use std::path::{Path, PathBuf};

use fusioncap::bundle::Bundle;
use fusioncap::config::{Limits, Model, Provider, Runtime};
use fusioncap::engine::{Caption, Engine};
use fusioncap::error::Result;
use kit::root;

/// Whether this machine has an NVIDIA GPU. A test that gets `false` returns.
///
/// # Panics
/// If there is no GPU and `FUSIONCAP_TEST_GPU` is `required`.
#[track_caller]
fn gpu() -> bool {
    let there = Path::new("/dev/nvidiactl").exists();
    let required = match std::env::var("FUSIONCAP_TEST_GPU") {
        Ok(value) if value == "required" => true,
        Ok(value) => panic!("FUSIONCAP_TEST_GPU can't be '{value}' (allowed: required)"),
        Err(_) => false,
    };
    assert!(there || !required, "no NVIDIA GPU here, and FUSIONCAP_TEST_GPU is 'required'");
    if !there {
        eprintln!("not run: no NVIDIA GPU here");
    }
    there
}

fn cpu() -> Runtime {
    Runtime::default()
}

/// In 32 bits, as the CPU computes.
fn cuda() -> Runtime {
    Runtime { providers: vec![Provider::Cuda], cuda_tf32: false, ..Runtime::default() }
}

fn load(runtime: &Runtime, batch_size: usize, num_beams: Option<usize>) -> Result<Engine> {
    let path = root("models/tiny");
    let settings = Model { path: path.display().to_string(), num_beams, ..Model::default() };
    Engine::load(Bundle::open(&path)?, runtime, &settings, batch_size)
}

/// The sample photos at the model's input size.
fn photos(engine: &Engine) -> Vec<Vec<u8>> {
    let decode = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        engine.preprocessor().decode(&bytes, &Limits::default()).unwrap().rgb
    };
    let photos: Vec<Vec<u8>> = kit::samples().iter().map(decode).collect();
    assert!(photos.len() >= 13);
    photos
}

/// The photos' captions, in batches of `batch` photos.
fn captions(engine: &mut Engine, photos: &[Vec<u8>], batch: usize) -> Vec<Caption> {
    let views: Vec<&[u8]> = photos.iter().map(Vec::as_slice).collect();
    views.chunks(batch).flat_map(|batch| engine.caption(batch).unwrap()).collect()
}

/// Allowed differences between captions on a GPU and on the CPU.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    /// Difference in score (mean log-probability) of captions with the same words.
    score: f32,
    /// Difference in score of captions with different words, which only near-ties have.
    near_tie: f32,
    /// Number of captions with different words.
    different: usize,
    /// 1 minus the cosine of the embeddings.
    embedding: f32,
}

/// 32-bit floats, summed in another order.
const EXACT: Tolerance = Tolerance { score: 2e-3, near_tie: 0.05, different: 1, embedding: 1e-5 };
/// Products with 10 bits of mantissa.
const TF32: Tolerance = Tolerance { score: 0.02, near_tie: 0.2, different: 4, embedding: 1e-3 };

fn assert_near(found: &[Caption], expected: &[Caption], tolerance: Tolerance, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (mut different, mut worst_score, mut worst_embedding) = (0, 0.0_f32, 0.0_f32);
    for (found, expected) in found.iter().zip(expected) {
        let score = (found.score - expected.score).abs();
        let dot: f32 =
            found.embedding.iter().zip(&expected.embedding).map(|(one, other)| one * other).sum();
        worst_embedding = worst_embedding.max((1.0 - dot).abs());
        if found.text == expected.text {
            worst_score = worst_score.max(score);
        } else {
            different += 1;
            let [one, other] = [found, expected].map(|caption| (&caption.text, caption.score));
            eprintln!("{what}: {one:?} instead of {other:?}");
            assert!(score <= tolerance.near_tie, "{what}: no near-tie: {score} apart");
        }
    }
    eprintln!(
        "{what}: {different} differ, scores {worst_score:.5}, embeddings {worst_embedding:.7} apart"
    );
    assert!(different <= tolerance.different, "{what}: {different} captions differ");
    assert!(worst_score <= tolerance.score, "{what}: scores are {worst_score} apart");
    assert!(worst_embedding <= tolerance.embedding, "{what}: embeddings {worst_embedding} apart");
}
