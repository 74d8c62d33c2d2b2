//! Images a second of the engine alone: `models/tiny` on the sample photos, already decoded and
//! in memory. `cargo bench --bench engine`, with `ORT_DYLIB_PATH` or after `make onnxruntime`.

use std::fs;
use std::path::{Path, PathBuf};

use divan::Bencher;
use divan::counter::ItemsCount;
use fusioncap::bundle::Bundle;
use fusioncap::config::{Limits, Model, Runtime};
use fusioncap::engine::Engine;

fn main() {
    divan::main();
}

/// Full batches at the bundle's own beam width.
#[divan::bench(args = [1, 4, 8, 32], sample_count = 20)]
fn full_batch(bencher: Bencher, batch_size: usize) {
    measure(bencher, batch_size, batch_size, None);
}

/// Full batches with greedy search: what beam search costs is the difference.
#[divan::bench(args = [1, 8, 32], sample_count = 20)]
fn full_batch_greedy(bencher: Bencher, batch_size: usize) {
    measure(bencher, batch_size, batch_size, Some(1));
}

/// One image in a batch of many: what padding costs.
#[divan::bench(args = [8], sample_count = 20)]
fn padded_batch(bencher: Bencher, batch_size: usize) {
    measure(bencher, batch_size, 1, None);
}

fn measure(bencher: Bencher, batch_size: usize, images: usize, num_beams: Option<usize>) {
    let mut engine = engine(batch_size, num_beams);
    let photos = photos(&engine);
    let batch: Vec<&[u8]> = photos.iter().cycle().take(images).map(Vec::as_slice).collect();
    bencher
        .counter(ItemsCount::new(images))
        .bench_local(|| engine.caption(divan::black_box(&batch)).expect("the batch is captioned"));
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn engine(batch_size: usize, num_beams: Option<usize>) -> Engine {
    let path = root("models/tiny");
    let settings = Model { path: path.display().to_string(), num_beams, ..Model::default() };
    let bundle = Bundle::open(&path).expect("models/tiny is whole");
    Engine::load(bundle, &Runtime::default(), &settings, batch_size).expect("the bundle loads")
}

/// The sample photos at the model's input size.
fn photos(engine: &Engine) -> Vec<Vec<u8>> {
    let folder = fs::read_dir(root("samples")).expect("samples/ is there");
    let mut paths: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    let decode = |path: &PathBuf| {
        let bytes = fs::read(path).expect("the photo can be read");
        let decoded = engine.preprocessor().decode(&bytes, &Limits::default());
        decoded.expect("the photo can be decoded").rgb
    };
    paths.iter().map(decode).collect()
}
