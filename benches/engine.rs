//! Images per second of the engine alone: `models/tiny` on the sample photos, decoded and in memory.
//! `cargo bench --bench engine`, with `ORT_DYLIB_PATH` or after `make onnxruntime`.
//!
//! `FUSIONCAP_RUNTIME__PROVIDERS` and the other variables of that section apply as in the worker;
//! `FUSIONCAP_TEST_MODEL` names another bundle.

use std::fs;
use std::path::PathBuf;

use divan::Bencher;
use divan::counter::ItemsCount;
use fusioncap::bundle::Bundle;
use fusioncap::config::{Config, Limits, Model};
use fusioncap::engine::Engine;

fn main() {
    divan::main();
}

/// Full batches at the bundle's own beam width.
#[divan::bench(args = [1, 4, 8, 32, 128, 256], sample_count = 20, max_time = 10)]
fn full_batch(bencher: Bencher, batch_size: usize) {
    measure(bencher, batch_size, batch_size, None);
}

/// Full batches with greedy search: the difference is the cost of beam search.
#[divan::bench(args = [1, 8, 32, 128, 256], sample_count = 20, max_time = 10)]
fn full_batch_greedy(bencher: Bencher, batch_size: usize) {
    measure(bencher, batch_size, batch_size, Some(1));
}

/// One image in a batch of many: the cost of padding.
#[divan::bench(args = [8], sample_count = 20)]
fn padded_batch(bencher: Bencher, batch_size: usize) {
    measure(bencher, batch_size, 1, None);
}

/// Full batches of the int8 variant.
#[cfg(feature = "train")]
#[divan::bench(args = [1, 8, 32], sample_count = 20)]
fn full_batch_int8(bencher: Bencher, batch_size: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let origin = Bundle::open(&model()).expect("the bundle is whole");
    for name in origin.manifest().expect("a manifest").files.keys().map(String::as_str) {
        copy(&origin.path(name), &folder.path().join(name));
    }
    fusioncap::bundle::seal(folder.path()).expect("a manifest");
    let copied = Bundle::open(folder.path()).expect("the copy is whole");
    let int8 = fusioncap::bundle::variants::Reduced::Int8;
    let made = fusioncap::onnx::variant::write(&copied, int8, "").expect("a variant");
    let runtime = Config::load_runtime().expect("settings that make sense");
    let engine = Engine::load(made, &runtime, &Model::default(), batch_size);
    run(bencher, engine.expect("the variant loads"), batch_size);
}

#[cfg(feature = "train")]
fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
    fs::copy(from, to).expect("a copy");
}

fn measure(bencher: Bencher, batch_size: usize, images: usize, num_beams: Option<usize>) {
    run(bencher, engine(batch_size, num_beams), images);
}

fn run(bencher: Bencher, mut engine: Engine, images: usize) {
    let photos = photos(&engine);
    let batch: Vec<&[u8]> = photos.iter().cycle().take(images).map(Vec::as_slice).collect();
    bencher
        .counter(ItemsCount::new(images))
        .bench_local(|| engine.caption(divan::black_box(&batch)).expect("the batch is captioned"));
}

fn model() -> PathBuf {
    std::env::var_os("FUSIONCAP_TEST_MODEL").map_or_else(|| kit::root("models/tiny"), PathBuf::from)
}

fn engine(batch_size: usize, num_beams: Option<usize>) -> Engine {
    let path = model();
    let settings = Model { path: path.display().to_string(), num_beams, ..Model::default() };
    let bundle = Bundle::open(&path).expect("the bundle is whole");
    let runtime = Config::load_runtime().expect("settings that make sense");
    Engine::load(bundle, &runtime, &settings, batch_size).expect("the bundle loads")
}

/// The sample photos at the model's input size.
fn photos(engine: &Engine) -> Vec<Vec<u8>> {
    let decode = |path: &PathBuf| {
        let bytes = fs::read(path).expect("the photo can be read");
        let decoded = engine.preprocessor().decode(&bytes, &Limits::default());
        decoded.expect("the photo can be decoded").rgb
    };
    kit::samples().iter().map(decode).collect()
}
