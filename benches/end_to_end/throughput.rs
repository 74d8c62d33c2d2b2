//! Images a second, end to end: against the engine alone where the model is the bottleneck, and
//! against decoding alone where that is (12-megapixel photos and the smallest bundle). The
//! difference is what it costs to consume, fetch and publish, and whatever waits for something.

use std::path::Path;
use std::time::{Duration, Instant};

use fusioncap::bundle::Bundle;
use fusioncap::config::{DecodeMode, Limits, Model, Runtime};
use fusioncap::engine::Engine;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;

use crate::bucket::Bucket;
use crate::kafka::{Cluster, Topics};
use crate::process::{Configuration, Worker};
use crate::{median, refer, table, timed};

const ROUNDS: usize = 3;
/// How often each sample photo comes, each time as another object.
const REPEATS: usize = 120;
const LARGE_REPEATS: usize = 64;
pub const BATCH: usize = 32;
const PARTITIONS: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(300);

pub type Photo = (String, Vec<u8>);

/// One of the two, or both.
pub async fn measure(cluster: &Cluster, small: bool, large: bool) {
    let mut rows = Vec::new();
    if small {
        rows.push(("end to end / engine alone", by_model(cluster).await));
    }
    if large {
        let name = "end to end / decoding alone, 12 megapixels";
        rows.push((name, by_decoding(cluster).await));
    }
    table::head("throughput");
    for (name, figures) in rows {
        table::row(name, figures.ratio(), Some(0.9));
    }
}

async fn by_model(cluster: &Cluster) -> Figures {
    let photos = taken(500, 375);
    let mut bench = Bench::start(cluster, "models/tiny", "model", &photos, REPEATS).await;
    let mut engine = load("models/tiny");
    let pixels = decode(&engine, &photos, REPEATS);
    let (mut alone, mut whole) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        alone.push(bench.rate(timed(|| caption(&mut engine, &pixels))));
        whole.push(bench.round(cluster).await);
    }
    bench.report("500 x 375, models/tiny");
    Figures::new("the engine alone", alone, whole)
}

async fn by_decoding(cluster: &Cluster) -> Figures {
    let photos = taken(4000, 3000);
    let mut bench = Bench::start(cluster, "models/random", "decode", &photos, LARGE_REPEATS).await;
    let engine = load("models/random");
    let (mut alone, mut whole) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        alone.push(bench.rate(timed(|| decode_on_all_cores(&engine, &photos, LARGE_REPEATS))));
        whole.push(bench.round(cluster).await);
    }
    bench.report("12 megapixels, models/random");
    Figures::new("decoding alone", alone, whole)
}

/// A worker and what it is given in each round.
struct Bench {
    worker: Worker,
    topics: Topics,
    uris: Vec<String>,
    done: usize,
    _bucket: Bucket,
}

impl Bench {
    async fn start(
        cluster: &Cluster,
        model: &str,
        name: &str,
        photos: &[Photo],
        repeats: usize,
    ) -> Self {
        let bucket = Bucket::start();
        let topics = cluster.topics(PARTITIONS).await;
        let uris = (0..repeats)
            .flat_map(|round| photos.iter().map(move |photo| (round, photo)))
            .map(|(round, (name, bytes))| bucket.put(&format!("{round}/{name}"), bytes))
            .collect();
        let mut worker = Configuration::new(name, cluster, &topics, &bucket)
            .replacing("models/random", model)
            .without_repeats()
            .replacing("size: 8", &format!("size: {BATCH}"))
            .replacing("max_object_bytes: 1000000", "max_object_bytes: 20000000")
            .replacing("max_in_flight: 128", "max_in_flight: 512")
            .start();
        worker.await_ready();
        let mut bench = Self { worker, topics, uris, done: 0, _bucket: bucket };
        // What is set up at the first image is no part of any round.
        bench.round(cluster).await;
        bench
    }

    fn rate(&self, elapsed: Duration) -> f64 {
        self.uris.len() as f64 / elapsed.as_secs_f64()
    }

    async fn round(&mut self, cluster: &Cluster) -> f64 {
        let started = Instant::now();
        refer(cluster, &self.topics, PARTITIONS as usize, &self.uris).await;
        self.done += self.uris.len();
        await_captions(&mut self.worker, self.done);
        self.rate(started.elapsed())
    }

    /// Where the worker's time went.
    fn report(&self, title: &str) {
        let count = self.uris.len();
        println!("\n{title}: {count} objects, batches of {BATCH}, {ROUNDS} rounds");
        let metric = |name: &str, labels: &str| {
            self.worker.metric(&format!("fusioncap_stage_{name}_seconds_total{{{labels}}}"))
        };
        for stage in ["fetch", "decode", "encode", "caption", "publish"] {
            let busy = metric("busy", &format!("stage=\"{stage}\""));
            println!("  {stage:8} busy {:6.2} ms an image", 1e3 * busy / self.done as f64);
        }
        let transactions = self.worker.metric("fusioncap_transactions_total");
        println!("  {:.1} captions a transaction", self.done as f64 / transactions);
    }
}

struct Figures {
    against: &'static str,
    alone: (f64, String),
    whole: (f64, String),
}

impl Figures {
    fn new(against: &'static str, alone: Vec<f64>, whole: Vec<f64>) -> Self {
        let figures = Self { against, alone: median(alone), whole: median(whole) };
        figures.print();
        figures
    }

    fn ratio(&self) -> f64 {
        self.whole.0 / self.alone.0
    }

    fn print(&self) {
        let (alone, whole) = (&self.alone, &self.whole);
        println!("  {:18} {:8.1} images/s  ({})", self.against, alone.0, alone.1);
        println!("  {:18} {:8.1} images/s  ({})", "end to end", whole.0, whole.1);
    }
}

/// The sample photos as a camera of that size would have taken them.
fn taken(width: u32, height: u32) -> Vec<Photo> {
    let taken = |(name, photo): (String, Vec<u8>)| {
        let photo = image::load_from_memory(&photo).unwrap();
        let scaled = photo.resize_to_fill(width, height, FilterType::Triangle).into_rgb8();
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, 88).encode_image(&scaled).unwrap();
        (name, bytes)
    };
    photos().into_iter().map(taken).collect()
}

/// The sample photos, by name.
pub fn photos() -> Vec<Photo> {
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
pub fn load(model: &str) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
    let bundle = Bundle::open(&path).unwrap();
    let settings = Model { path: path.display().to_string(), ..Model::default() };
    Engine::load(bundle, &Runtime::default(), &settings, BATCH).unwrap()
}

/// Every photo, as often as it comes.
pub fn decode(engine: &Engine, photos: &[Photo], repeats: usize) -> Vec<Vec<u8>> {
    let one = |bytes: &[u8]| engine.preprocessor().decode(bytes, &Limits::default()).unwrap().rgb;
    photos.iter().cycle().take(photos.len() * repeats).map(|(_, bytes)| one(bytes)).collect()
}

fn decode_on_all_cores(engine: &Engine, photos: &[Photo], repeats: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let preprocessor = engine.preprocessor().clone().in_mode(DecodeMode::Fast);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= photos.len() * repeats {
                        return;
                    }
                    let bytes = &photos[number % photos.len()].1;
                    preprocessor.decode(bytes, &Limits::default()).unwrap();
                }
            });
        }
    });
}

fn caption(engine: &mut Engine, pixels: &[Vec<u8>]) {
    for batch in pixels.chunks(BATCH) {
        let images: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        engine.caption(&images).unwrap();
    }
}

/// Waits until the worker has committed `count` captions in all.
fn await_captions(worker: &mut Worker, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while worker.metric("fusioncap_captions_total") < count as f64 {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "too slow:\n{}", worker.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}
