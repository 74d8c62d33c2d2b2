//! The plain path: every shape of reference, every kind of bad object, a clean shutdown.

use std::collections::HashMap;
use std::time::Duration;

use kit::bucket::{BUCKET, Bucket, oversized_png, picture, truncated_jpeg, uri};
use kit::process::Configuration;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::json;

use crate::faults::{PARTITIONS, fill, produce};
use crate::fences::assert_settled;
use crate::{Expected, assert_exactly_once, shared_cluster};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_of_reference_is_captioned_once() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    for number in 0..4 {
        bucket.put(&format!("a b/{number}.png"), &picture(number));
    }
    let event = |keys: &[&str], name: &str| {
        let records: Vec<_> = keys
            .iter()
            .map(|key| {
                json!({"eventName": name, "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}})
            })
            .collect();
        json!({"Records": records})
    };
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let plain = OwnedHeaders::new;
    let traced = plain().insert(Header { key: "traceparent", value: Some(trace) });
    let binary = plain().insert(Header { key: "ce_specversion", value: Some("1.0") });
    let request = json!({"uri": uri("a b/0.png"), "id": "mine", "attributes": {"album": "x"}});
    let structured = json!({"specversion": "1.0", "type": "t", "id": "1", "source": "s",
        "data": {"uri": uri("a b/2.png")}});
    let messages = [
        (0, request, traced),
        (1, event(&["a+b/0.png", "a%20b/1.png"], "ObjectCreated:Put"), plain()),
        (0, structured, plain()),
        (1, json!({"uri": uri("a b/3.png")}), binary),
        (0, event(&["a+b/0.png"], "s3:ObjectRemoved:Delete"), plain()),
    ];
    for (partition, message, headers) in messages {
        let payload = message.to_string();
        cluster.produce(&topics.input, partition, "the key", payload.as_bytes(), headers).await;
    }
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    let records = cluster.await_records(&[&topics.output], 5, PATIENCE);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());

    let all = cluster.read_committed(&[&topics.output, &topics.dead_letters]);
    assert_eq!(all.len(), 5, "{all:?}");
    let mine = records.iter().find(|record| record.text("id") == "mine").unwrap();
    assert_eq!(mine.key.as_deref(), Some(&b"the key"[..]));
    assert_eq!(mine.source(), (0, 0));
    assert_eq!(mine.header("traceparent"), trace);
    assert_eq!(mine.header("fusioncap-source-topic"), topics.input);
    assert_eq!(mine.header("fusioncap-model-digest"), mine.text("model_digest"));
    let quoted = bucket.etag("a b/0.png");
    let etag = quoted.trim_matches('"');
    assert_eq!(mine.header("fusioncap-etag"), etag);
    assert_eq!(mine.text("etag"), etag);
    assert_eq!(mine.text("uri"), uri("a b/0.png"));
    assert_eq!(mine.text("content_type"), "image/png");
    assert_eq!((&mine.value["width"], &mine.value["height"]), (&json!(64), &json!(48)));
    assert_eq!(mine.value["attributes"], json!({"album": "x"}));
    let many: Vec<_> = records.iter().filter(|record| record.source() == (1, 0)).collect();
    let indices: Vec<_> =
        many.iter().map(|record| record.header("fusioncap-source-index")).collect();
    assert_eq!(indices.len(), 2);
    assert!(indices.contains(&"0") && indices.contains(&"1"), "{indices:?}");
    // The event that creates nothing is passed over, and committed all the same.
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captioned_becomes_a_dead_letter() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("empty.jpg", b"");
    bucket.put("page.jpg", b"<!DOCTYPE html><html><body>not found</body></html>");
    bucket.put("half.jpg", &truncated_jpeg());
    bucket.put("huge.png", &oversized_png());
    bucket.put("long.png", &vec![0; 1_000_001]);
    let reference = |key: &str| json!({"uri": uri(key)}).to_string();
    let cases = [
        ("{\"uri\": ".to_owned(), "invalid_message"),
        (json!({"url": uri("a.png")}).to_string(), "invalid_message"),
        (json!({"uri": "https://example.org/a.png"}).to_string(), "unsupported_uri"),
        (json!({"uri": "s3://elsewhere/a.png"}).to_string(), "bucket_not_allowed"),
        (reference("missing.png"), "object_not_found"),
        (reference("empty.jpg"), "empty_object"),
        (reference("page.jpg"), "not_an_image"),
        (reference("half.jpg"), "corrupt_image"),
        (reference("huge.png"), "image_too_large"),
        (reference("long.png"), "object_too_large"),
    ];
    let mut expected = HashMap::new();
    for (payload, code) in &cases {
        let bytes = payload.as_bytes();
        let offset = cluster.produce(&topics.input, 0, "k", bytes, OwnedHeaders::new()).await;
        expected.insert((0, offset), Expected::DeadLetter(code));
    }
    let _worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    let letters = cluster.await_records(&[&topics.dead_letters], cases.len(), PATIENCE);
    assert_exactly_once(&letters, &expected);
    for letter in &letters {
        let (payload, code) = &cases[letter.source().1 as usize];
        use base64::Engine as _;
        let original = base64::engine::general_purpose::STANDARD
            .decode(letter.text("payload_base64"))
            .unwrap();
        assert_eq!(original, payload.as_bytes(), "{code}");
        assert_eq!(letter.key.as_deref(), Some(&b"k"[..]));
        assert!(!letter.text("reason").is_empty());
    }
    assert!(cluster.read_committed(&[&topics.output]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_loses_nothing() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    for number in 0..20 {
        bucket.put(&format!("{number}.png"), &picture(number));
    }
    let (producer, mut expected) = (cluster.producer(), HashMap::new());
    for number in 0..300 {
        let payload = json!({"uri": uri(&format!("{}.png", number % 20))}).to_string();
        let (partition, bytes) = (number % 2, payload.as_bytes());
        let headers = OwnedHeaders::new();
        let offset =
            kit::kafka::deliver(&producer, &topics.input, partition, "k", bytes, headers).await;
        expected.insert((partition, offset), Expected::Caption);
    }
    let configuration = Configuration::new("one", &cluster, &topics, &bucket);
    let mut first = configuration.start();
    cluster.await_records(&[&topics.output], 20, PATIENCE);
    first.signal("TERM");
    assert!(first.wait(Duration::from_secs(15)).success(), "{}", first.log());
    let at_the_end = cluster.read_committed(&[&topics.output]).len();
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), at_the_end as i64);

    let _second = configuration.start();
    let records = cluster.await_records(&[&topics.output], 300, PATIENCE);
    assert_exactly_once(&records, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_show_how_long_every_stage_worked_and_waited() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let producer = cluster.producer();
    for number in 0..20 {
        let name = format!("{number}.png");
        let payload = json!({ "uri": bucket.put(&name, &picture(number)) }).to_string();
        let (bytes, headers) = (payload.as_bytes(), OwnedHeaders::new());
        kit::kafka::deliver(&producer, &topics.input, 0, "k", bytes, headers).await;
    }
    let worker = Configuration::new("measured", &cluster, &topics, &bucket).start();
    cluster.await_records(&[&topics.output], 20, PATIENCE);
    for (stage, side) in [("decode", "upstream"), ("encode", "upstream"), ("caption", "upstream")] {
        let labels = format!("stage=\"{stage}\",waiting_for=\"{side}\"");
        let name = format!("fusioncap_stage_waiting_seconds_total{{{labels}}}");
        assert!(worker.metric(&name) > 0.0, "{name}");
    }
    for stage in ["consume", "fetch", "decode", "encode", "caption", "publish"] {
        let name = format!("fusioncap_stage_busy_seconds_total{{stage=\"{stage}\"}}");
        assert!(worker.metric(&name) > 0.0, "{name}");
    }
}

/// A pause throws away what was prefetched, and librdkafka may take a second to ask for it again:
/// a worker with much to do takes in what there is room for, and pauses only when it stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_many_times_what_may_be_in_flight_takes_no_pause() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let expected = produce(&cluster, &topics, 0..1_600).await;
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket).with_debug_log().start();
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    let pauses = worker.log().matches("\"message\":\"paused\"").count();
    assert!(pauses <= 10, "{pauses} pauses:\n{}", worker.log());
}
