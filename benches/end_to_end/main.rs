//! The worker as it runs in production, measured against the plain alternatives in one run, on a
//! real Kafka broker and a real S3 server. All of them share this machine's cores with it, so
//! what counts are the ratios.
//!
//! `make bench`; one part of it: `cargo bench --bench end_to_end -- throughput` (or `small` or
//! `large` photos of that, `publish`, `memory`, `tail`, `verify`).

mod memory;
mod publish;
mod tail;
mod throughput;
mod verify;

use std::time::{Duration, Instant};

use kit::kafka::{Cluster, Topics, deliver};
use rdkafka::message::OwnedHeaders;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` comes without it: there is nothing to test.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let parts: Vec<&String> =
        arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| *part == name);

    let cluster = Cluster::start(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores, which the worker shares with the broker and the S3 server");
    let (both, small, large) = (wanted("throughput"), wanted("small"), wanted("large"));
    if both || small || large {
        throughput::measure(&cluster, both || small, both || large).await;
    }
    if wanted("publish") {
        publish::measure(&cluster).await;
    }
    if wanted("memory") {
        memory::measure(&cluster).await;
    }
    if wanted("tail") {
        tail::measure(&cluster).await;
    }
    if wanted("verify") {
        verify::measure(&cluster).await;
    }
}

/// Puts one reference to each of `uris` on the input topic, over its `partitions` in turn.
async fn refer(cluster: &Cluster, topics: &Topics, partitions: usize, uris: &[String]) {
    let producer = cluster.producer();
    let payloads: Vec<String> =
        uris.iter().map(|uri| serde_json::json!({ "uri": uri }).to_string()).collect();
    let deliveries = payloads.iter().enumerate().map(|(number, payload)| {
        let partition = (number % partitions) as i32;
        let payload = payload.as_bytes();
        deliver(&producer, &topics.input, partition, "k", payload, OwnedHeaders::new())
    });
    futures::future::join_all(deliveries).await;
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// The middle one of an odd number of measurements, and the range of all of them.
fn median(mut values: Vec<f64>) -> (f64, String) {
    values.sort_by(f64::total_cmp);
    let range = format!("{:.1} to {:.1}", values[0], values[values.len() - 1]);
    (values[values.len() / 2], range)
}
