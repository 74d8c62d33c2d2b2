//! The worker's limits: the secrets that it keeps, the objects that references reach, and the time
//! that an image gets.

use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

use kit::bucket::{BUCKET, Bucket, picture, uri};
use kit::process::{Configuration, Worker};
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::{Expected, assert_exactly_once, shared_cluster};

const PATIENCE: Duration = Duration::from_secs(60);

/// An image of little data that keeps a decoder busy for a quarter of a minute and more.
fn endless_image() -> Vec<u8> {
    kit::many_scans::jpeg(28_000, 99)
}

const LARGE: &str = "limits:\n  max_pixels: 800000000\n";
const LARGE_OBJECTS: [&str; 2] = ["max_object_bytes: 1000000", "max_object_bytes: 2000000"];

/// Secrets for everything that takes one, and what else the configuration becomes by them.
struct Secrets {
    all: Vec<String>,
    properties: String,
}

impl Secrets {
    /// `s3` is the one that the store checks.
    fn new(s3: &str) -> Self {
        let names = ["sasl.password", "ssl.key.password", "sasl.oauthbearer.client.secret"];
        let hidden = |name: &str| format!("hidden-{}-{}", name.replace('.', "-"), s3.len());
        let mut properties = String::new();
        for name in names {
            properties.push_str(&format!("    {name}: {}\n", hidden(name)));
        }
        let all = names.iter().map(|name| hidden(name)).chain([s3.to_owned(), TOKEN.to_owned()]);
        Self { all: all.collect(), properties }
    }

    fn assert_absent(&self, place: &str, text: &str) {
        for secret in &self.all {
            let at = text.find(secret.as_str());
            let around = at.map(|at| {
                let start = at.saturating_sub(300);
                String::from_utf8_lossy(&text.as_bytes()[start..(at + 100).min(text.len())])
            });
            assert!(at.is_none(), "{place} shows {secret}: ...{}", around.unwrap_or_default());
        }
    }

    fn assert_kept(&self, worker: &Worker) {
        self.assert_absent("the log", &worker.log());
        for path in ["/metrics", "/readyz", "/livez"] {
            self.assert_absent(path, &worker.get(path).unwrap_or_default());
        }
    }
}

const TOKEN: &str = "hidden-session-token";

/// Everything, and by name what is quiet otherwise.
const LOUD: &str = "trace,aws_config=trace,aws_runtime=trace,aws_sdk_s3=trace,\
                    aws_smithy_runtime=trace,hyper=trace,hyper_util=trace,h2=trace,\
                    librdkafka=trace,rdkafka=trace";

fn with_secrets(configuration: Configuration, bucket: &Bucket, secrets: &Secrets) -> Configuration {
    configuration
        .replacing("  properties:\n", &format!("  properties:\n{}", secrets.properties))
        .replacing(
            &format!("  secret_access_key: {}\n", bucket.secret()),
            &format!("  secret_access_key: {}\n  session_token: {TOKEN}\n", bucket.secret()),
        )
        .with_variable("FUSIONCAP_LOG", LOUD)
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_the_log_and_the_metrics() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    for reference in [bucket.put("a.png", &picture(1)), uri("missing.png")] {
        let payload = json!({"uri": reference}).to_string();
        cluster.produce(&topics.input, 0, "k", payload.as_bytes(), OwnedHeaders::new()).await;
    }
    let secrets = Secrets::new(bucket.secret());
    let plain = Configuration::new("one", &cluster, &topics, &bucket);
    let mut worker = with_secrets(plain, &bucket, &secrets).start();
    let answers = [topics.output.as_str(), topics.dead_letters.as_str()];
    cluster.await_records(&answers, 2, PATIENCE);
    worker.await_ready();
    assert!(worker.metric("fusioncap_captions_total") > 0.0);
    secrets.assert_kept(&worker);
    let log = worker.log();
    for part in ["TRACE", "aws_sigv4", "librdkafka"] {
        assert!(log.contains(part), "the log was to tell everything, {part} too:\n{log}");
    }
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    secrets.assert_kept(&worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_what_is_said_about_failures() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let payload = json!({"uri": bucket.put("a.png", &picture(1))}).to_string();
    cluster.produce(&topics.input, 0, "k", payload.as_bytes(), OwnedHeaders::new()).await;
    let new = || {
        Configuration::new("one", &cluster, &topics, &bucket)
            .replacing("  input_topic: ", "  connect_timeout_ms: 0\n  input_topic: ")
    };
    let secrets = Secrets::new(bucket.secret());

    let unreachable =
        with_secrets(new(), &bucket, &secrets).replacing(&cluster.bootstrap, "127.0.0.1:1").start();
    // The broker speaks no SASL: it hangs up on the password.
    let refused = with_secrets(new(), &bucket, &secrets)
        .replacing(
            "  properties:\n",
            "  properties:\n    security.protocol: SASL_PLAINTEXT\n    sasl.mechanism: PLAIN\n    \
             sasl.username: cap\n",
        )
        .start();
    let wrong = "hidden-and-wrong-secret";
    let wrong_secrets = Secrets::new(wrong);
    let denied =
        with_secrets(new(), &bucket, &wrong_secrets).replacing(bucket.secret(), wrong).start();
    // An outage: nothing is dead-lettered for it.
    let deadline = Instant::now() + PATIENCE;
    while !denied.log().contains("refused the credentials") {
        assert!(Instant::now() < deadline, "{}", denied.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    wrong_secrets.assert_kept(&denied);
    for mut worker in [unreachable, refused] {
        assert_eq!(worker.wait(PATIENCE).code(), Some(1), "{}", worker.log());
        secrets.assert_kept(&worker);
    }

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.yaml");
    std::fs::write(&file, &with_secrets(new(), &bucket, &secrets).yaml).unwrap();
    for arguments in [&["config"][..], &["config", "--set", "kafka.properties.acks=0"]] {
        let mut command = Command::new(kit::binary());
        let output = command
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .env("FUSIONCAP_LOG", LOUD)
            .output()
            .unwrap();
        for text in [&output.stdout, &output.stderr] {
            secrets.assert_absent("fusioncap config", &String::from_utf8_lossy(text));
        }
        let is_right = arguments.len() == 1;
        assert_eq!(output.status.code(), Some(if is_right { 0 } else { 2 }));
    }
}

/// Hostile references meet a worker that may read one folder of one bucket.
#[tokio::test(flavor = "multi_thread")]
async fn references_reach_what_is_allowed_and_nothing_else() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    for key in ["public/a.png", "private/a.png", "public-not/a.png"] {
        bucket.put(key, &picture(1));
    }
    let event = |bucket: &str, key: &str| {
        json!({"Records": [{"eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]})
    };
    let unsupported = Expected::DeadLetter("unsupported_uri");
    let not_allowed = Expected::DeadLetter("bucket_not_allowed");
    let cases = [
        (json!({"uri": uri("public/a.png")}), Expected::Caption),
        (event(BUCKET, "public%2Fa.png"), Expected::Caption),
        (json!({"uri": uri("private/a.png")}), not_allowed.clone()),
        (json!({"uri": uri("public-not/a.png")}), not_allowed.clone()),
        (event(BUCKET, "private/a.png"), not_allowed.clone()),
        (json!({"uri": "s3://secrets/public/a.png"}), not_allowed),
        (json!({"uri": uri("public/../private/a.png")}), unsupported.clone()),
        (event(BUCKET, "public/%2e%2e/private/a.png"), unsupported.clone()),
        (event("photos@evil.example", "public/a.png"), unsupported.clone()),
        (event("127.0.0.1:9000/photos", "public/a.png"), unsupported.clone()),
        (json!({"uri": "s3://arn:aws:s3:us-west-2:123456789012:accesspoint:x/a"}), unsupported),
    ];
    let mut expected = HashMap::new();
    for (message, becomes) in &cases {
        let bytes = message.to_string();
        let offset =
            cluster.produce(&topics.input, 0, "k", bytes.as_bytes(), OwnedHeaders::new()).await;
        expected.insert((0, offset), becomes.clone());
    }
    let _worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing("allowed_buckets: [photos]", "allowed_buckets: [photos/public/]")
        .start();
    let answers = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&answers, cases.len(), PATIENCE);
    assert_exactly_once(&records, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_hangs_its_decoder_costs_a_place_and_no_more() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let endless = bucket.put("endless.jpg", &endless_image());
    let sound = bucket.put("a.png", &picture(1));
    let mut expected = HashMap::new();
    let references = std::iter::once((endless, Expected::DeadLetter("decode_timeout")))
        .chain(std::iter::repeat_n((sound, Expected::Caption), 5));
    for (reference, becomes) in references {
        let payload = json!({"uri": reference}).to_string();
        let bytes = payload.as_bytes();
        let offset = cluster.produce(&topics.input, 0, "k", bytes, OwnedHeaders::new()).await;
        expected.insert((0, offset), becomes);
    }
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(LARGE_OBJECTS[0], LARGE_OBJECTS[1])
        .replacing("limits:\n", &format!("{LARGE}  decode_timeout_ms: 3000\n"))
        .replacing("runtime:\n", "runtime:\n  decode_threads: 2\n")
        .start();
    let answers = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&answers, 6, PATIENCE);
    assert_exactly_once(&records, &expected);
    // The thread that hangs does not keep the process.
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_decoders_all_hang_ends_and_its_successor_goes_on() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let endless = bucket.put("endless.jpg", &endless_image());
    let sound = bucket.put("a.png", &picture(1));
    let mut expected = HashMap::new();
    let mut produce = async |reference: &str, becomes: Expected| {
        let payload = json!({"uri": reference}).to_string();
        let bytes = payload.as_bytes();
        let offset = cluster.produce(&topics.input, 0, "k", bytes, OwnedHeaders::new()).await;
        expected.insert((0, offset), becomes);
    };
    let configuration = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(LARGE_OBJECTS[0], LARGE_OBJECTS[1])
        .replacing("limits:\n", &format!("{LARGE}  decode_timeout_ms: 300\n"))
        .replacing("runtime:\n", "runtime:\n  decode_threads: 1\n");
    produce(&endless, Expected::DeadLetter("decode_timeout")).await;
    let mut first = configuration.start();
    cluster.await_records(&[&topics.dead_letters], 1, PATIENCE);
    // The only place is lost: the worker lives on until someone needs it.
    assert!(first.is_running(), "{}", first.log());
    produce(&sound, Expected::Caption).await;
    assert_eq!(first.wait(PATIENCE).code(), Some(1), "{}", first.log());
    assert!(first.log().contains("all decode threads hang"), "{}", first.log());
    assert_eq!(cluster.committed(&topics.group, &topics.input, 1), 1, "{}", first.log());

    let _second = configuration.start();
    let answers = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&answers, 2, PATIENCE);
    assert_exactly_once(&records, &expected);
}
