//! Resident memory: idle with the tiny bundle, and over many references with the random one, of
//! which only the flow's own part matters here.

use std::time::{Duration, Instant};

use kit::bucket::{Bucket, picture};
use kit::kafka::Cluster;
use kit::process::{Configuration, Worker};

use crate::refer;

const REFERENCES: usize = 100_000;
const PICTURES: usize = 5_000;
const PARTITIONS: i32 = 4;
/// Shown each time so many references are done.
const STEP: usize = 10_000;
/// Until then buffers and pools may still grow.
const WARM: usize = 10_000;
const SETTLING: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(3600);

pub async fn measure(cluster: &Cluster) {
    println!("\nmemory, resident");
    idle(cluster).await;
    under_load(cluster).await;
}

async fn idle(cluster: &Cluster) {
    let bucket = Bucket::start();
    let topics = cluster.topics(PARTITIONS).await;
    let configuration = Configuration::new("idle", cluster, &topics, &bucket)
        .replacing("models/random", "models/tiny");
    let mut worker = configuration.start();
    worker.await_ready();
    std::thread::sleep(SETTLING);
    println!("  idle, models/tiny  {:7.1} MB", resident(&worker));
}

async fn under_load(cluster: &Cluster) {
    let bucket = Bucket::start();
    let topics = cluster.topics(PARTITIONS).await;
    let pictures: Vec<String> = (0..PICTURES)
        .map(|number| bucket.put(&format!("{number}.png"), &picture(number as u32)))
        .collect();
    let uris: Vec<String> = pictures.iter().cycle().take(REFERENCES).cloned().collect();
    let mut worker = Configuration::new("load", cluster, &topics, &bucket)
        .without_coalescing()
        .replacing("size: 8", "size: 32")
        .replacing("max_in_flight: 128", "max_in_flight: 512")
        .start();
    worker.await_ready();
    println!("  idle, models/random{:7.1} MB", resident(&worker));
    refer(cluster, &topics, PARTITIONS as usize, &uris).await;

    let deadline = Instant::now() + PATIENCE;
    let (mut peak, mut warm, mut last, mut shown) = (0.0_f64, None, 0.0, 0);
    while shown < REFERENCES {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "too slow:\n{}", worker.log());
        std::thread::sleep(Duration::from_millis(100));
        let done = worker.metric("fusioncap_captions_total") as usize;
        last = resident(&worker);
        peak = peak.max(last);
        if done >= WARM {
            warm.get_or_insert(last);
        }
        if done >= shown + STEP {
            shown = done / STEP * STEP;
            println!("  after {shown:6} references {last:7.1} MB");
        }
    }
    let growth = last - warm.unwrap_or(last);
    println!("  at most {peak:.1} MB; {growth:+.1} MB from {WARM} references to {REFERENCES}");
}

/// In megabytes.
fn resident(worker: &Worker) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes * 1024.0 / 1e6
}
