//! How objects are requested: over few connections, and again when a read is late.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::retries::Requests;
use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the model takes for a batch, and shorter than stores keep idle connections.
const LULL: Duration = Duration::from_secs(3);
const CONCURRENCY: usize = 8;

/// A store, how often each key was asked for, and the connections that were made to it. What is
/// called `late` does not come the first time.
async fn watched_store() -> (SocketAddr, Requests, Arc<AtomicUsize>) {
    let (requests, connections) = (Requests::default(), Arc::new(AtomicUsize::new(0)));
    let router = Router::new()
        .route("/photos/{key}", axum::routing::get(answer))
        .with_state(requests.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counted = Arc::clone(&connections);
    let listener = listener.tap_io(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, requests, connections)
}

async fn answer(State(requests): State<Requests>, Path(key): Path<String>) -> Response {
    let first = {
        let mut counts: std::sync::MutexGuard<'_, HashMap<_, _>> = requests.lock().unwrap();
        let count = counts.entry(key.clone()).or_insert(0);
        *count += 1;
        *count == 1
    };
    if first && key.starts_with("late") {
        std::future::pending::<()>().await;
    }
    picture(3).into_response()
}

async fn refer(cluster: &Cluster, topics: &Topics, keys: impl Iterator<Item = String>) {
    let producer = cluster.producer();
    for key in keys {
        let reference = json!({"uri": uri(&key)}).to_string();
        let (payload, headers) = (reference.as_bytes(), OwnedHeaders::new());
        deliver(&producer, &topics.input, 0, "k", payload, headers).await;
    }
}

fn configuration(
    cluster: &Cluster,
    topics: &Topics,
    bucket: &Bucket,
    store: SocketAddr,
) -> Configuration {
    Configuration::new("one", cluster, topics, bucket)
        .with_store(bucket, store)
        .replacing("s3:\n", &format!("s3:\n  concurrency: {CONCURRENCY}\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_store_are_used_again() {
    const EACH: usize = 150;
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let (store, requests, connections) = watched_store().await;
    let worker = configuration(&cluster, &topics, &bucket, store).without_hedging().start();
    for round in 1..=2 {
        refer(&cluster, &topics, (0..EACH).map(|number| format!("{round}-{number}.png"))).await;
        cluster.await_records(&[&topics.output], EACH * round, PATIENCE);
        tokio::time::sleep(LULL).await;
    }
    let asked: usize = requests.lock().unwrap().values().sum();
    assert_eq!(asked, 2 * EACH);
    // A request that waits for a connection of its own takes one that comes free meanwhile; the new
    // one is kept, too.
    let made = connections.load(Ordering::SeqCst);
    assert!((1..=2 * CONCURRENCY).contains(&made), "{made} connections for {asked} requests");
    let depth = worker.metric("fusioncap_fetch_concurrency_limit");
    assert!((1.0..=CONCURRENCY as f64).contains(&depth), "{depth}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_read_is_hedged() {
    const LATE: usize = 5;
    const ALL: usize = 30;
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let (store, requests, _) = watched_store().await;
    let name = |number: usize| match number % (ALL / LATE) {
        0 => format!("late-{number}.png"),
        _ => format!("{number}.png"),
    };
    refer(&cluster, &topics, (0..ALL).map(name)).await;
    // A request that never comes would take a minute.
    let worker = configuration(&cluster, &topics, &bucket, store)
        .replacing("  max_attempts: 3\n", "  timeout_ms: 60000\n")
        .start();
    let records = cluster.await_records(&[&topics.output], ALL, Duration::from_secs(30));
    assert_eq!(records.len(), ALL);
    let counts = requests.lock().unwrap().clone();
    for (key, times) in counts.iter().filter(|(key, _)| key.starts_with("late")) {
        assert!((2..=3).contains(times), "{key}: {times}");
    }
    // On a busy machine others are late, too.
    let hedges = counts.values().sum::<usize>() - ALL;
    assert!(hedges >= LATE, "{counts:?}");
    assert_eq!(worker.metric("fusioncap_fetch_hedges_total"), hedges as f64);
    assert_eq!(worker.metric("fusioncap_fetch_retries_total"), 0.0);
}
