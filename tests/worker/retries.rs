//! An object store that fails: what passes is tried again, what lasts becomes a dead letter.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use kit::bucket::{Bucket, picture, uri};
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);
/// As `Configuration` has it.
const MAX_ATTEMPTS: usize = 3;

/// How often each key was asked for.
pub type Requests = Arc<Mutex<HashMap<String, usize>>>;

/// Answers as an object store that is up, but for some objects: `throttled.png` never comes,
/// `broken.png` neither, and `late.png` at the last attempt.
async fn troubled_store() -> (SocketAddr, Requests) {
    store(axum::routing::get(answer)).await
}

/// An object store whose one bucket `answers`.
pub async fn store(answers: MethodRouter<Requests>) -> (SocketAddr, Requests) {
    let requests = Requests::default();
    let router = Router::new().route("/photos/{key}", answers).with_state(requests.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, requests)
}

async fn answer(State(requests): State<Requests>, Path(key): Path<String>) -> Response {
    let attempt = {
        let mut counts = requests.lock().unwrap();
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        *count
    };
    let error = |code: &str| format!("<Error><Code>{code}</Code></Error>");
    match key.as_str() {
        "late.png" if attempt >= MAX_ATTEMPTS => picture(1).into_response(),
        "throttled.png" | "late.png" => {
            (StatusCode::SERVICE_UNAVAILABLE, error("SlowDown")).into_response()
        }
        "broken.png" => (StatusCode::INTERNAL_SERVER_ERROR, error("InternalError")).into_response(),
        good if good.starts_with("good") => picture(2).into_response(),
        _ => (StatusCode::NOT_FOUND, error("NoSuchKey")).into_response(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_now_is_tried_again_and_then_dead_lettered() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let (address, requests) = troubled_store().await;
    let bad = ["throttled.png", "broken.png", "late.png"].map(str::to_owned);
    // These show that the store is up.
    let good = (0..20).map(|number| format!("good-{number}.png"));
    for key in bad.into_iter().chain(good) {
        let reference = json!({"uri": uri(&key)}).to_string();
        cluster.produce(&topics.input, 0, "k", reference.as_bytes(), OwnedHeaders::new()).await;
    }
    let _worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_store(&bucket, address)
        .without_hedging()
        .start();
    let records = cluster.await_records(&[&topics.output, &topics.dead_letters], 23, PATIENCE);

    let of = |key: &str| records.iter().find(|record| record.text("uri") == uri(key)).unwrap();
    for (key, code) in [("throttled.png", "fetch_throttled"), ("broken.png", "fetch_unavailable")] {
        let letter = of(key);
        assert_eq!(letter.text("code"), code, "{key}");
        assert_eq!(letter.text("stage"), "fetch", "{key}");
        let attempts = requests.lock().unwrap()[key];
        assert_eq!(letter.value["attempts"], json!(attempts), "{key}");
        // More than once over, where too little was known of the others.
        assert!(attempts >= MAX_ATTEMPTS, "{key}: {attempts}");
    }
    assert!(!of("late.png").text("caption").is_empty());
    let counts = requests.lock().unwrap();
    assert!(counts["late.png"] >= MAX_ATTEMPTS, "it did not come at once");
}

/// Nothing else is asked for, so only the store itself can say whether it is up.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_bad_object_is_dead_lettered_when_the_store_answers_probes() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let (address, requests) = troubled_store().await;
    let reference = json!({"uri": uri("broken.png")}).to_string();
    cluster.produce(&topics.input, 0, "k", reference.as_bytes(), OwnedHeaders::new()).await;
    let _worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_store(&bucket, address)
        .without_hedging()
        .start();
    let letters = cluster.await_records(&[&topics.dead_letters], 1, PATIENCE);
    assert_eq!(letters[0].text("code"), "fetch_unavailable");
    let counts = requests.lock().unwrap();
    assert_eq!(counts["broken.png"], 2 * MAX_ATTEMPTS, "all tries, and all again after a probe");
    let probes = counts.keys().filter(|key| key.starts_with("fusioncap-probe-")).count();
    assert!(probes >= 3, "the store was asked about other keys: {probes}");
}
