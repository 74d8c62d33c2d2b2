//! The world is down for a while: nothing is lost, nothing is dead-lettered for it, and the worker
//! goes on by itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::{Configuration, Worker};
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::distance::distant;
use crate::faults::{PARTITIONS, fill, produce};
use crate::fences::{assert_settled, await_work};
use crate::proxy::Proxy;
use crate::{Expected, assert_exactly_once, proxied_cluster, shared_cluster};

const PATIENCE: Duration = Duration::from_secs(90);
/// Longer than the sessions of `Configuration`.
const OUTAGE: Duration = Duration::from_secs(12);
const REFERENCES: usize = 300;

/// An object store that can be switched off: then it answers everything with 503.
#[derive(Default)]
struct Switch {
    down: AtomicBool,
    refused: AtomicUsize,
    served: AtomicUsize,
}

async fn store(switch: &Arc<Switch>) -> SocketAddr {
    let router = Router::new()
        .route("/photos/{key}", axum::routing::get(answer))
        .with_state(Arc::clone(switch));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn answer(State(switch): State<Arc<Switch>>, Path(key): Path<String>) -> Response {
    if switch.down.load(Ordering::SeqCst) {
        switch.refused.fetch_add(1, Ordering::SeqCst);
        return (StatusCode::SERVICE_UNAVAILABLE, "<Error><Code>ServiceUnavailable</Code></Error>")
            .into_response();
    }
    if key.starts_with("fusioncap-probe-") {
        return (StatusCode::NOT_FOUND, "<Error><Code>NoSuchKey</Code></Error>").into_response();
    }
    switch.served.fetch_add(1, Ordering::SeqCst);
    picture(key.len() as u32).into_response()
}

fn await_metric(worker: &mut Worker, name: &str, is: impl Fn(f64) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is(worker.metric(name)) {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "{name} is {}", worker.metric(name));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a GET of `path` is answered with `status`.
fn await_answer(worker: &mut Worker, path: &str, status: &str) {
    let (deadline, wanted) = (Instant::now() + PATIENCE, format!("HTTP/1.1 {status}"));
    while !worker.get(path).is_some_and(|answer| answer.starts_with(&wanted)) {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "{path} is {:?}\n{}", worker.get(path), worker.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn refer(cluster: &Cluster, topics: &Topics) {
    let producer = cluster.producer();
    let deliveries = (0..REFERENCES).map(|number| {
        let (producer, topic) = (producer.clone(), topics.input.clone());
        async move {
            let reference = json!({"uri": uri(&format!("{number}.png"))}).to_string();
            let headers = OwnedHeaders::new();
            deliver(&producer, &topic, 0, "k", reference.as_bytes(), headers).await
        }
    });
    futures::future::join_all(deliveries).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_pauses_the_worker_and_dead_letters_nothing() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let switch = Arc::new(Switch::default());
    let address = store(&switch).await;
    let mut worker =
        Configuration::new("one", &cluster, &topics, &bucket).with_store(&bucket, address).start();
    worker.await_ready();
    switch.down.store(true, Ordering::SeqCst);
    refer(&cluster, &topics).await;
    await_metric(&mut worker, "fusioncap_circuit_breaker_open", |value| value == 1.0);
    await_metric(&mut worker, "fusioncap_partitions_paused", |value| value == 1.0);
    let began = Instant::now();
    tokio::time::sleep(OUTAGE).await;
    assert_eq!(worker.metric("fusioncap_circuit_breaker_open"), 1.0);
    let refused = switch.refused.load(Ordering::SeqCst);
    let probes = OUTAGE.as_millis() as usize / 50;
    assert!(refused > 3, "the store was asked");
    assert!(
        refused < REFERENCES * 3 + probes,
        "but not for everything, again and again: {refused}"
    );
    assert_eq!(switch.served.load(Ordering::SeqCst), 0);
    switch.down.store(false, Ordering::SeqCst);
    println!("the store was down for {:?} and refused {refused} requests", began.elapsed());

    let records = cluster.await_records(&[&topics.output], REFERENCES, PATIENCE);
    assert_eq!(records.len(), REFERENCES);
    assert_eq!(cluster.read_committed(&[&topics.dead_letters]).len(), 0);
    assert_eq!(worker.metric("fusioncap_circuit_breaker_open"), 0.0);
    let log = worker.log();
    assert_eq!(log.matches("\"partitions assigned\"").count(), 1, "membership was kept:\n{log}");
    assert!(log.contains("the object store is down") && log.contains("is up again"), "{log}");
    worker.signal("TERM");
    assert!(worker.wait(Duration::from_secs(30)).success(), "{}", worker.log());
}

/// Wrong credentials are no fault of any object: nothing is dead-lettered for them either.
#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_an_outage() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let reference = json!({"uri": bucket.put("a.png", &picture(1))}).to_string();
    cluster.produce(&topics.input, 0, "k", reference.as_bytes(), OwnedHeaders::new()).await;
    let right = Configuration::new("one", &cluster, &topics, &bucket);
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(bucket.secret(), "wrong-and-secret")
        .start();
    await_metric(&mut worker, "fusioncap_circuit_breaker_open", |value| value == 1.0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    worker.signal("TERM");
    assert!(worker.wait(Duration::from_secs(30)).success(), "{}", worker.log());
    let log = worker.log();
    assert!(log.contains("refused the credentials"), "{log}");
    assert!(!log.contains("wrong-and-secret"), "{log}");
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    assert!(cluster.read_committed(&both).is_empty());
    let _mended = right.start();
    assert!(!cluster.await_records(&[&topics.output], 1, PATIENCE)[0].text("caption").is_empty());
}

/// Kills the only broker while the worker has work in hand; what must become of each reference.
async fn lose_kafka_at_work(
    cluster: &Cluster,
    topics: &Topics,
    worker: &mut Worker,
) -> HashMap<(i32, i64), Expected> {
    worker.await_ready();
    let expected = produce(cluster, topics, 0..1_000).await;
    await_metric(worker, "fusioncap_captions_total", |value| value > 50.0);
    await_metric(worker, "fusioncap_in_flight_references", |value| value >= 16.0);
    cluster.broker("kill", 1);
    assert!(!cluster.is_listening(1), "the broker is still there");
    expected
}

/// The only broker is away for longer than any time-out of the worker, the watchdog's included.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_kafka_ends_no_worker_and_loses_nothing_takes_minutes() {
    let cluster = Cluster::start(1);
    if !cluster.is_ours() {
        return;
    }
    let bucket = Bucket::start();
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let one = Configuration::new("one", &cluster, &topics, &bucket);
    let mut worker = distant(one, &bucket).await.start();
    let expected = lose_kafka_at_work(&cluster, &topics, &mut worker).await;
    // Transactions time out after 8 s, the watchdog asks 30 s later.
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
    await_answer(&mut worker, "/readyz", "503");
    cluster.broker("start", 1);
    await_answer(&mut worker, "/readyz", "200");
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, expected.len(), PATIENCE * 2);
    assert_exactly_once(&records, &expected);
    worker.signal("TERM");
    assert!(worker.wait(Duration::from_secs(30)).success(), "{}", worker.log());
    assert_exactly_once(&cluster.read_committed(&both), &expected);
}

/// Kafka is away when a busy worker is told to end: it ends within its grace all the same, and says
/// that something was left.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_while_kafka_is_away_ends_in_time() {
    let cluster = Cluster::start(1);
    if !cluster.is_ours() {
        return;
    }
    let bucket = Bucket::start();
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let configuration = Configuration::new("one", &cluster, &topics, &bucket).replacing(
        "drain_timeout_ms: 10000",
        "drain_timeout_ms: 3000\n  termination_grace_ms: 15000",
    );
    let mut worker = distant(configuration.clone(), &bucket).await.start();
    let expected = lose_kafka_at_work(&cluster, &topics, &mut worker).await;
    let told = Instant::now();
    worker.signal("TERM");
    let status = worker.wait(PATIENCE);
    assert!(told.elapsed() < Duration::from_secs(15), "{:?}:\n{}", told.elapsed(), worker.log());
    assert_eq!(status.code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains("error: a transaction did not end in time"), "{}", worker.log());

    cluster.broker("start", 1);
    let mut next = configuration.start();
    assert_settled(&cluster, &topics, &expected, &mut [&mut next]);
}

/// Kafka can't be reached for longer than a session lasts.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_out_of_reach_is_waited_for() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let one = Configuration::new("one", &cluster, &topics, &bucket).through(proxy.address);
    let mut worker = distant(one, &bucket).await.start();
    worker.await_ready();
    let expected = produce(&cluster, &topics, 0..600).await;
    await_work(&mut worker);
    proxy.refuse(true);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(worker.is_running(), "{}", worker.log());
    let (refused, cut) = proxy.counts();
    assert!(refused > 0 && cut > 1, "{refused} refused, {cut} cut");
    proxy.refuse(false);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
}

/// Kafka is away when a worker starts: it says so and waits, and can be told to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_while_kafka_is_away_waits_for_it() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(1).await, Proxy::before(&cluster));
    let reference = json!({"uri": bucket.put("a.png", &picture(1))}).to_string();
    cluster.produce(&topics.input, 0, "k", reference.as_bytes(), OwnedHeaders::new()).await;
    proxy.refuse(true);
    let [mut told, mut waiting] = ["one", "two"].map(|name| {
        Configuration::new(name, &cluster, &topics, &bucket).through(proxy.address).start()
    });
    for worker in [&mut told, &mut waiting] {
        worker.await_log("can't reach kafka: retrying", 1);
    }
    told.signal("TERM");
    // It does not sit out the ten seconds that the brokers have to answer.
    assert!(told.wait(Duration::from_secs(5)).success(), "{}", told.log());
    assert!(!told.log().contains("connected to kafka"), "{}", told.log());
    assert!(proxy.counts().0 > 0, "nobody was refused");
    assert!(cluster.read_committed(&[&topics.output]).is_empty());
    proxy.refuse(false);
    waiting.await_ready();
    assert!(!cluster.await_records(&[&topics.output], 1, PATIENCE)[0].text("caption").is_empty());
}
