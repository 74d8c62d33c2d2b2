//! Images a second: end to end, and the engine alone on the same images in the same batches. The
//! difference is what it costs to consume, fetch, decode and publish.

use std::path::Path;
use std::time::{Duration, Instant};

use fusioncap::bundle::Bundle;
use fusioncap::config::{Limits, Model, Runtime};
use fusioncap::engine::Engine;

use crate::bucket::Bucket;
use crate::kafka::Cluster;
use crate::process::{Configuration, Worker};
use crate::{median, refer, timed};

const ROUNDS: usize = 3;
/// How often each sample photo comes.
const REPEATS: usize = 16;
/// The size in `Configuration`.
const BATCH: usize = 8;
const PARTITIONS: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn measure(cluster: &Cluster) {
    let bucket = Bucket::start();
    let topics = cluster.topics(PARTITIONS).await;
    let photos = photos();
    let names: Vec<String> = photos.iter().map(|(name, bytes)| bucket.put(name, bytes)).collect();
    let uris: Vec<String> =
        names.iter().cycle().take(names.len() * REPEATS).map(String::clone).collect();

    let configuration = Configuration::new("bench", cluster, &topics, &bucket)
        .replacing("models/random", "models/tiny");
    let mut worker = configuration.start();
    worker.await_ready();
    let mut engine = load();

    let (mut alone, mut decoding, mut whole, mut busy) = (vec![], vec![], vec![], vec![]);
    let rate = |elapsed: Duration| uris.len() as f64 / elapsed.as_secs_f64();
    for _ in 0..ROUNDS {
        let mut pixels = Vec::new();
        decoding.push(rate(timed(|| pixels = decode(&engine, &photos))));
        alone.push(rate(timed(|| caption(&mut engine, &pixels))));
        let before = caption_seconds(&worker);
        let started = Instant::now();
        refer(cluster, &topics, PARTITIONS as usize, &uris).await;
        await_captions(&mut worker, (whole.len() + 1) * uris.len());
        let elapsed = started.elapsed();
        whole.push(rate(elapsed));
        busy.push(100.0 * (caption_seconds(&worker) - before) / elapsed.as_secs_f64());
    }

    let (count, transactions) = (uris.len(), worker.metric("fusioncap_transactions_total"));
    let (alone, alone_range) = median(alone);
    let (decoding, decoding_range) = median(decoding);
    let (whole, whole_range) = median(whole);
    let (busy, busy_range) = median(busy);
    let batch = (count * ROUNDS) as f64 / transactions;
    println!("\nthroughput: {count} photos, batches of {BATCH}, models/tiny, {ROUNDS} rounds");
    println!("  decoding, one thread  {decoding:8.1} images/s  ({decoding_range})");
    println!("  engine alone          {alone:8.1} images/s  ({alone_range})");
    println!("  end to end            {whole:8.1} images/s  ({whole_range})");
    println!("  end to end / engine alone {:.2}", whole / alone);
    println!("  the engine was busy {busy:.0} % of the time ({busy_range})");
    println!("  {batch:.1} captions a transaction");
}

/// The sample photos, by name.
fn photos() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let mut photos: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    photos.sort();
    photos
}

/// As the worker does.
fn load() -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let bundle = Bundle::open(&path).unwrap();
    let model = Model { path: path.display().to_string(), embeddings: false, num_beams: None };
    Engine::load(bundle, &Runtime::default(), &model, BATCH).unwrap()
}

/// Every photo, as often as it comes.
fn decode(engine: &Engine, photos: &[(String, Vec<u8>)]) -> Vec<Vec<u8>> {
    let one = |bytes: &[u8]| engine.preprocessor().decode(bytes, &Limits::default()).unwrap().rgb;
    photos.iter().cycle().take(photos.len() * REPEATS).map(|(_, bytes)| one(bytes)).collect()
}

fn caption(engine: &mut Engine, pixels: &[Vec<u8>]) {
    for batch in pixels.chunks(BATCH) {
        let images: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        engine.caption(&images).unwrap();
    }
}

fn caption_seconds(worker: &Worker) -> f64 {
    worker.metric("fusioncap_stage_busy_seconds_total{stage=\"caption\"}")
}

/// Waits until the worker has committed `count` captions in all.
fn await_captions(worker: &mut Worker, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while worker.metric("fusioncap_captions_total") < count as f64 {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "too slow:\n{}", worker.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}
