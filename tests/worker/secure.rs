//! Kafka behind TLS and SASL, with a certificate of our own making.

use std::sync::Arc;
use std::time::Duration;

use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics};
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::Shared;

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker with TLS and SASL, always our own, while any of these tests runs.
fn secure_cluster() -> Arc<Cluster> {
    static SHARED: Shared<Cluster> = Shared::new();
    SHARED.get(|| Cluster::start_own(1, 0, &["--sasl"]))
}

fn file(cluster: &Cluster, name: &str) -> String {
    std::fs::read_to_string(cluster.folder().join(name)).unwrap().trim().to_owned()
}

/// A worker that comes in through TLS with the given mechanism.
fn configuration(
    cluster: &Cluster,
    topics: &Topics,
    bucket: &Bucket,
    mechanism: &str,
) -> Configuration {
    let authority = cluster.folder().join("tls/ca.pem");
    Configuration::new("one", cluster, topics, bucket)
        .replacing(&cluster.bootstrap, &file(cluster, "sasl"))
        .with_property("security.protocol", "SASL_SSL")
        .with_property("ssl.ca.location", authority.to_str().unwrap())
        .with_property("sasl.mechanism", mechanism)
}

fn with_password(configuration: Configuration, password: &str) -> Configuration {
    configuration.with_property("sasl.username", "worker").with_property("sasl.password", password)
}

/// One reference goes in, and its caption comes out.
async fn works(cluster: &Cluster, topics: &Topics, bucket: &Bucket, configuration: Configuration) {
    let reference = json!({"uri": bucket.put("a.png", &picture(1))}).to_string();
    cluster.produce(&topics.input, 0, "k", reference.as_bytes(), OwnedHeaders::new()).await;
    let mut worker = configuration.start();
    worker.await_ready();
    let captions = cluster.await_records(&[&topics.output], 1, PATIENCE);
    assert_eq!(captions[0].text("uri"), uri("a.png"));
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    assert_eq!(cluster.committed(&topics.group, &topics.input, 1), 1);
}

/// The worker ends, and says with what; its error.
fn fails(configuration: &Configuration, code: i32) -> String {
    let mut worker = configuration.start();
    assert_eq!(worker.wait(PATIENCE).code(), Some(code), "{}", worker.log());
    worker.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_signs_in_with_a_password_over_tls() {
    let (cluster, bucket) = (secure_cluster(), Bucket::start());
    let password = file(&cluster, "password");
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let topics = cluster.topics(1).await;
        let plain = configuration(&cluster, &topics, &bucket, mechanism);
        works(&cluster, &topics, &bucket, with_password(plain, &password)).await;
    }
}

/// The broker takes tokens without a signature here, which librdkafka makes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_signs_in_with_a_token_over_tls() {
    let (cluster, bucket) = (secure_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let configuration = configuration(&cluster, &topics, &bucket, "OAUTHBEARER")
        .with_property("enable.sasl.oauthbearer.unsecure.jwt", "true")
        .with_property("sasl.oauthbearer.config", "principal=worker");
    works(&cluster, &topics, &bucket, configuration).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_and_not_told() {
    let (cluster, bucket) = (secure_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let plain = configuration(&cluster, &topics, &bucket, mechanism);
        let log = fails(&with_password(plain, "wrong-and-secret"), 1);
        let told = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(told.contains("kafka.properties.sasl.password"), "{mechanism}: {log}");
        assert!(!log.contains("wrong-and-secret"), "{mechanism}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_nobody_vouches_for_is_refused() {
    let (cluster, bucket) = (secure_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let stranger = cluster.folder().join("tls/broker.pem");
    let authority = cluster.folder().join("tls/ca.pem");
    let plain = configuration(&cluster, &topics, &bucket, "PLAIN");
    let configuration = with_password(plain, &file(&cluster, "password"))
        .replacing(authority.to_str().unwrap(), stranger.to_str().unwrap());
    let log = fails(&configuration, 1);
    let told = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(told.contains("kafka.properties.ssl.ca.location"), "{log}");
    assert!(!log.contains(&file(&cluster, "password")), "{log}");
}

/// A client that speaks no TLS to a listener that does.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_another_kind_is_refused() {
    let (cluster, bucket) = (secure_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let configuration = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(&cluster.bootstrap, &file(&cluster, "sasl"))
        .replacing("  input_topic: ", "  connect_timeout_ms: 0\n  input_topic: ");
    let log = fails(&configuration, 1);
    let told = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(told.contains("security.protocol"), "{log}");
}
