//! Images a second, end to end: against the engine alone where the model is the bottleneck, and
//! against decoding alone where that is (12-megapixel photos and the smallest bundle). The
//! difference is what it costs to consume, fetch and publish, and whatever waits for something.
//!
//! The broker and the S3 server, which sends a megabyte an image, take their part of the same
//! cores. How the worker would do on cores of its own, its processor time an image tells.
//!
//! Where the model is the bottleneck, `FUSIONCAP_TEST_MODEL` names another bundle,
//! `FUSIONCAP_TEST_BATCH` another size of batches and `FUSIONCAP_TEST_REPEATS` how often each photo
//! comes; with `FUSIONCAP_RUNTIME__PROVIDERS` both sides compute on a GPU.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fusioncap::bundle::Bundle;
use fusioncap::config::{Config, DecodeMode, Limits, Model};
use fusioncap::engine::Engine;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use kit::bucket::Bucket;
use kit::kafka::{Cluster, Topics};
use kit::process::{Configuration, Worker};
use kit::{root, table};

use crate::{median, refer};

const ROUNDS: usize = 3;
/// How often each sample photo comes, each time as another object.
const REPEATS: usize = 120;
const LARGE_REPEATS: usize = 64;
pub const BATCH: usize = 32;
const PARTITIONS: i32 = 4;
/// The stages that a GPU works for, and what they wait for.
const WAITS: [&str; 4] = [
    "stage=\"encode\",waiting_for=\"upstream\"",
    "stage=\"encode\",waiting_for=\"downstream\"",
    "stage=\"caption\",waiting_for=\"upstream\"",
    "stage=\"caption\",waiting_for=\"downstream\"",
];
/// `USER_HZ`, which is the same on all Linux machines of today.
const TICKS_A_SECOND: f64 = 100.0;
const PATIENCE: Duration = Duration::from_secs(300);

pub type Photo = (String, Vec<u8>);

/// One of the two, or both.
pub async fn measure(cluster: &Cluster, small: bool, large: bool) {
    let mut rows = Vec::new();
    if small {
        let figures = by_model(cluster).await;
        rows.push(("end to end / engine alone", figures.ratio()));
        rows.push(("  processor time: engine alone / worker", figures.cpu_ratio()));
    }
    if large {
        let figures = by_decoding(cluster).await;
        rows.push(("end to end / decoding alone, 12 megapixels", figures.ratio()));
        rows.push(("  processor time: decoding alone / worker", figures.cpu_ratio()));
    }
    table::head("throughput");
    for (name, ratio) in rows {
        table::row(name, ratio, Some(0.9));
    }
}

async fn by_model(cluster: &Cluster) -> Figures {
    let photos = taken(500, 375);
    let model = std::env::var("FUSIONCAP_TEST_MODEL").unwrap_or_else(|_| "models/tiny".into());
    let batch = number("FUSIONCAP_TEST_BATCH", BATCH);
    let repeats = number("FUSIONCAP_TEST_REPEATS", REPEATS);
    let mut bench = Bench::start(cluster, &model, "model", &photos, repeats, batch).await;
    let mut engine = load(&model, batch);
    let pixels = decode(&engine, &photos, repeats);
    let (mut alone, mut whole) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let watch = Watch::start(std::process::id());
        caption(&mut engine, &pixels, batch);
        alone.push(watch.stop(pixels.len()));
        whole.push(bench.round(cluster).await);
    }
    bench.report(&format!("500 x 375, {model}"));
    Figures::new("the engine alone", alone, whole)
}

async fn by_decoding(cluster: &Cluster) -> Figures {
    let photos = taken(4000, 3000);
    let random = "models/random";
    let mut bench = Bench::start(cluster, random, "decode", &photos, LARGE_REPEATS, BATCH).await;
    let engine = load(random, BATCH);
    let (mut alone, mut whole) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let watch = Watch::start(std::process::id());
        decode_on_all_cores(&engine, &photos, LARGE_REPEATS);
        alone.push(watch.stop(photos.len() * LARGE_REPEATS));
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
    batch: usize,
    done: usize,
    /// Seconds that `WAITS` took in all rounds.
    waited: [f64; WAITS.len()],
    _bucket: Bucket,
}

impl Bench {
    async fn start(
        cluster: &Cluster,
        model: &str,
        name: &str,
        photos: &[Photo],
        repeats: usize,
        batch: usize,
    ) -> Self {
        let bucket = Bucket::start();
        let topics = cluster.topics(PARTITIONS).await;
        let uris = (0..repeats)
            .flat_map(|round| photos.iter().map(move |photo| (round, photo)))
            .map(|(round, (name, bytes))| bucket.put(&format!("{round}/{name}"), bytes))
            .collect();
        let mut worker = Configuration::new(name, cluster, &topics, &bucket)
            .replacing(&text(&root("models/random")), &text(&root(model)))
            .without_coalescing()
            .replacing("size: 8", &format!("size: {batch}"))
            .replacing("max_object_bytes: 1000000", "max_object_bytes: 20000000")
            .replacing("max_in_flight: 128", &format!("max_in_flight: {}", 16 * batch))
            .start();
        worker.await_ready();
        let mut bench = Self {
            worker,
            topics,
            uris,
            batch,
            done: 0,
            waited: [0.0; WAITS.len()],
            _bucket: bucket,
        };
        // The setup at the first image is not part of any round.
        bench.round(cluster).await;
        bench
    }

    async fn round(&mut self, cluster: &Cluster) -> Measured {
        let before = self.waits();
        let watch = Watch::start(self.worker.pid());
        refer(cluster, &self.topics, PARTITIONS as usize, &self.uris).await;
        self.done += self.uris.len();
        await_captions(&mut self.worker, self.done);
        let measured = watch.stop(self.uris.len());
        let after = self.waits();
        for ((waited, after), before) in self.waited.iter_mut().zip(after).zip(before) {
            *waited += after - before;
        }
        measured
    }

    fn waits(&self) -> [f64; WAITS.len()] {
        WAITS.map(|labels| {
            self.worker.metric(&format!("fusioncap_stage_waiting_seconds_total{{{labels}}}"))
        })
    }

    /// Where the worker's time went.
    fn report(&self, title: &str) {
        let count = self.uris.len();
        println!("\n{title}: {count} objects, batches of {}, {ROUNDS} rounds", self.batch);
        let metric = |name: &str, labels: &str| {
            self.worker.metric(&format!("fusioncap_stage_{name}_seconds_total{{{labels}}}"))
        };
        for stage in ["fetch", "decode", "encode", "caption", "publish"] {
            let busy = metric("busy", &format!("stage=\"{stage}\""));
            println!("  {stage:8} busy {:6.2} ms an image", 1e3 * busy / self.done as f64);
        }
        for (labels, waited) in WAITS.iter().zip(self.waited) {
            println!("  waiting {labels} {:6.2} ms an image", 1e3 * waited / self.done as f64);
        }
        let transactions = self.worker.metric("fusioncap_transactions_total");
        println!("  {:.1} captions a transaction", self.done as f64 / transactions);
    }
}

/// A process from now on.
struct Watch {
    pid: u32,
    started: Instant,
    cpu: f64,
}

impl Watch {
    fn start(pid: u32) -> Self {
        Self { pid, started: Instant::now(), cpu: cpu_time(pid) }
    }

    fn stop(self, images: usize) -> Measured {
        let images = images as f64;
        Measured {
            rate: images / self.started.elapsed().as_secs_f64(),
            cpu_ms: 1e3 * (cpu_time(self.pid) - self.cpu) / images,
        }
    }
}

/// One round.
struct Measured {
    /// Images a second.
    rate: f64,
    /// Processor time an image, in milliseconds.
    cpu_ms: f64,
}

struct Figures {
    rate: Compared,
    cpu_ms: Compared,
}

/// The medians of all rounds, and their ranges.
struct Compared {
    alone: (f64, String),
    whole: (f64, String),
}

impl Figures {
    fn new(against: &'static str, alone: Vec<Measured>, whole: Vec<Measured>) -> Self {
        let compared = |of: fn(&Measured) -> f64| Compared {
            alone: median(alone.iter().map(of).collect()),
            whole: median(whole.iter().map(of).collect()),
        };
        let figures =
            Self { rate: compared(|round| round.rate), cpu_ms: compared(|round| round.cpu_ms) };
        figures.rate.print(against, "images/s");
        figures.cpu_ms.print(against, "ms of a core an image");
        figures
    }

    fn ratio(&self) -> f64 {
        self.rate.whole.0 / self.rate.alone.0
    }

    fn cpu_ratio(&self) -> f64 {
        self.cpu_ms.alone.0 / self.cpu_ms.whole.0
    }
}

impl Compared {
    fn print(&self, against: &str, unit: &str) {
        for (name, (median, range)) in [(against, &self.alone), ("end to end", &self.whole)] {
            println!("  {name:18} {median:8.1} {unit}  ({range})");
        }
    }
}

/// Seconds that a process has spent on processors, those of its system calls included.
fn cpu_time(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold spaces; user and system time are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    ticks / TICKS_A_SECOND
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
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    };
    kit::samples().into_iter().map(read).collect()
}

/// The number in `variable`, or the usual one.
fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// As the worker does.
pub fn load(model: &str, batch: usize) -> Engine {
    let path = root(model);
    let settings = Model { path: text(&path), ..Model::default() };
    let bundle = Bundle::open(&path).unwrap();
    Engine::load(bundle, &Config::load_runtime().unwrap(), &settings, batch).unwrap()
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

fn caption(engine: &mut Engine, pixels: &[Vec<u8>], batch: usize) {
    for images in pixels.chunks(batch) {
        let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
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
