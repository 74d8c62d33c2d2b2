//! The plain path in each format, both ways.

use std::collections::BTreeMap;

use fusioncap::message::header;
use kit::bucket::{BUCKET, Bucket, picture, uri};
use kit::kafka::{Cluster, Topics};
use kit::process::Configuration;
use serde_json::{Value, json};

use super::server::{Server, framed};
use super::{PATIENCE, ask, await_raw, configuration, payloads, shared_server};
use crate::command::Subcommand;
use crate::shared_cluster;
use crate::topic::{self, Raw};

const REQUEST: &str = include_str!("../../../schemas/image-request.v1.avsc");

/// A request in Avro's JSON, which names the branches of unions.
fn request(key: &str, id: &str) -> Value {
    json!({"uri": uri(key), "id": {"string": id}, "version_id": null, "etag": null,
           "attributes": {"album": "x"}})
}

fn by_id(records: Vec<Value>) -> BTreeMap<String, Value> {
    records.into_iter().map(|record| (record["id"].as_str().unwrap().to_owned(), record)).collect()
}

/// Requests in every form, and what is answered to each: the captions' ids, and of the dead letters
/// what must stand in their reasons.
async fn requests(server: &Server, topics: &Topics) -> (Vec<Vec<u8>>, [&'static str; 6]) {
    let subject = format!("{}-value", topics.input);
    let avro = server.register(&subject, "AVRO", REQUEST).await;
    let name = topics.input.replace(['.', '-'], "_");
    let json_schema = format!(r#"{{"title": "{name}", "type": "object", "properties": {{}}}}"#);
    let json_schema = server.register(&format!("{name}-json"), "JSON", &json_schema).await;
    let text = format!(r#"syntax = "proto3"; message M{name} {{ string uri = 1; }}"#);
    let protobuf = server.register(&format!("{name}-protobuf"), "PROTOBUF", &text).await;
    let list = format!(
        r#"{{"type": "record", "name": "L{name}", "fields": [
            {{"name": "uri", "type": "string"}},
            {{"name": "next", "type": ["null", "L{name}"], "default": null}}]}}"#
    );
    let list = server.register(&format!("{name}-list"), "AVRO", &list).await;
    let mut sent = server.write_avro(avro, &[request("0.png", "avro"), request("no.png", "gone")]);
    let whole = sent[0].clone();
    let plain = |id: &str| json!({"uri": uri("0.png"), "id": id}).to_string();
    sent.push(framed(json_schema, plain("json-schema").as_bytes()));
    sent.push(plain("plain").into_bytes());
    // Several images in one message.
    let event = |key: &str| {
        json!({"eventName": "ObjectCreated:Put",
               "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}})
    };
    let event = json!({"Records": [event("0.png"), event("1.png")]}).to_string();
    sent.push(framed(json_schema, event.as_bytes()));
    sent.push(framed(4_000_000, plain("unknown").as_bytes()));
    sent.push(whole[..whole.len() - 1].to_vec());
    sent.push([&whole[..], b"x"].concat());
    sent.push(framed(protobuf, b"\x0a\x01a"));
    sent.push(framed(list, b"\x02a\x00"));
    // No frame: too short for one.
    sent.push(b"\0\0\0\0".to_vec());
    let reasons = [
        "does not know the message's schema (schema: 4000000)",
        "is not a readable Avro record of its schema",
        "there are bytes behind the Avro record",
        "schemaType: PROTOBUF",
        "its schema contains itself",
        "the message is not JSON",
    ];
    (sent, reasons)
}

/// The checks that are the same in every format: each request is answered once, each refusal has
/// its reason and the original message.
fn assert_answers(
    (sent, reasons): &(Vec<Vec<u8>>, [&'static str; 6]),
    captions: Vec<Value>,
    letters: Vec<Value>,
) {
    assert_eq!((captions.len(), letters.len()), (5, 7));
    let captions = by_id(captions);
    for id in ["avro", "json-schema", "plain"] {
        let caption = &captions[id];
        assert_eq!(caption["uri"], uri("0.png"));
        assert!(!caption["caption"].as_str().unwrap().is_empty());
        assert_eq!(caption["embedding"].as_array().unwrap().len(), 32, "{caption}");
    }
    assert_eq!(captions["avro"]["attributes"], json!({"album": "x"}));
    let letters = by_id(letters);
    assert_eq!(letters["gone"]["code"], "object_not_found");
    for reason in reasons {
        let of_reason = |letter: &&Value| letter["reason"].as_str().unwrap().contains(reason);
        let letter = letters.values().find(of_reason).unwrap_or_else(|| panic!("no {reason}"));
        assert_eq!(
            (&letter["code"], &letter["stage"]),
            (&json!("invalid_message"), &json!("consume"))
        );
    }
    for letter in letters.values() {
        use base64::Engine as _;
        let kept = letter["payload_base64"].as_str().unwrap();
        let kept = base64::engine::general_purpose::STANDARD.decode(kept).unwrap();
        let offset = letter["source_offset"].as_u64().unwrap();
        assert_eq!(kept, sent[usize::try_from(offset).unwrap()]);
    }
}

fn stop(mut worker: kit::process::Worker) {
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
}

fn with_embeddings(configuration: Configuration) -> Configuration {
    configuration.replacing("model:\n", "model:\n  embeddings: true\n")
}

async fn run(
    cluster: &Cluster,
    topics: &Topics,
    format: &str,
) -> (Vec<Raw>, Vec<Raw>, Vec<Vec<u8>>, [&'static str; 6]) {
    let (server, bucket) = (shared_server(), Bucket::start());
    bucket.put("0.png", &picture(0));
    bucket.put("1.png", &picture(1));
    let (sent, reasons) = requests(&server, topics).await;
    ask(cluster, topics, &sent);
    let fields = format!("  format: {format}\n");
    let configuration = configuration(cluster, topics, &bucket, &server.url, &fields);
    let worker = with_embeddings(configuration).start();
    let captions = await_raw(cluster, &topics.output, 5);
    let letters = await_raw(cluster, &topics.dead_letters, 7);
    stop(worker);
    let verify = Subcommand::new("verify", cluster, topics);
    let url = format!("registry.url={}", server.url);
    let (code, report) = verify.json(&["--set", &url]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["total"]["references"], 12, "{report}");
    // Put back what is there by now, its framed request byte for byte.
    bucket.put("no.png", &picture(2));
    let worker =
        with_embeddings(super::configuration(cluster, topics, &bucket, &server.url, &fields))
            .start();
    let redrive = Subcommand::new("redrive", cluster, topics);
    let format = format!("registry.format={format}");
    let chosen = ["--code", "object_not_found", "--set", &url, "--set", &format];
    let (code, summary) = redrive.json(&chosen);
    assert_eq!((code, &summary["redriven"]), (0, &json!(1)), "{summary}");
    await_raw(cluster, &topics.output, 6);
    stop(worker);
    let last = topic::read(cluster, &topics.input).pop().unwrap().record;
    assert_eq!(last.payload.as_ref(), Some(&sent[1]));
    let (code, summary) = redrive.json(&chosen);
    assert_eq!((code, &summary["already_redriven"]), (0, &json!(1)), "{summary}");
    assert_eq!(summary["unreadable"], 0, "{summary}");
    (captions, letters, sent, reasons)
}

#[tokio::test(flavor = "multi_thread")]
async fn avro_is_read_and_written() {
    let (cluster, server) = (shared_cluster(), shared_server());
    let topics = cluster.topics(1).await;
    let (captions, letters, sent, reasons) = run(&cluster, &topics, "avro").await;
    let told = server.read_avro(&payloads(&captions), None);
    for (raw, caption) in captions.iter().zip(&told) {
        assert_eq!(raw.record.key.as_deref(), Some(&b"the key"[..]));
        let digest = raw.header(header::MODEL_DIGEST).unwrap();
        assert_eq!(caption["model_digest"], digest);
        // A number of microseconds, of this year or a later one.
        assert!(caption["captioned_at"].as_i64().unwrap() > 1_700_000_000_000_000, "{caption}");
    }
    assert_answers(&(sent, reasons), told, server.read_avro(&payloads(&letters), None));
    // The letter's marker has a schema of its own.
    let all = topic::read(&cluster, &topics.dead_letters);
    let marker = all.iter().find(|raw| raw.header(header::REDRIVEN).is_some()).unwrap();
    let marker = server.read_avro(&payloads(std::slice::from_ref(marker)), None).remove(0);
    assert_eq!(
        (&marker["code"], &marker["redriven_times"]),
        (&json!("object_not_found"), &json!(1))
    );
    let subjects = server.get("/subjects").await;
    for subject in [
        format!("{}-value", topics.output),
        format!("{}-value", topics.dead_letters),
        format!("{}-io.github.fusioncap.DeadLetterMarker", topics.dead_letters),
    ] {
        assert!(subjects.as_array().unwrap().contains(&json!(subject)), "{subject}: {subjects}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_schema_is_read_and_written() {
    let (cluster, server) = (shared_cluster(), shared_server());
    let topics = cluster.topics(1).await;
    let (captions, letters, sent, reasons) = run(&cluster, &topics, "json-schema").await;
    let mut told = Vec::new();
    for records in [captions, letters] {
        let mut values = Vec::new();
        for payload in payloads(&records) {
            assert_eq!(payload[0], 0);
            let id = u32::from_be_bytes(payload[1..5].try_into().unwrap());
            let value: Value = serde_json::from_slice(&payload[5..]).unwrap();
            let found = server.get(&format!("/schemas/ids/{id}")).await;
            assert_eq!(found["schemaType"], "JSON");
            let schema: Value = serde_json::from_str(found["schema"].as_str().unwrap()).unwrap();
            let validator = jsonschema::validator_for(&schema).unwrap();
            assert!(validator.is_valid(&value), "{value} by {schema}");
            values.push(value);
        }
        told.push(values);
    }
    let letters = told.pop().unwrap();
    assert_answers(&(sent, reasons), told.pop().unwrap(), letters);
}

/// Nothing changes for a worker without a registry, and a framed request says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_registry_nothing_is_framed() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    let plain = json!({"uri": uri("0.png")}).to_string().into_bytes();
    ask(&cluster, &topics, &[framed(1, &plain), plain]);
    let worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    let captions = cluster.await_records(&[&topics.output], 1, PATIENCE);
    assert_eq!(captions[0].source(), (0, 1));
    let letters = cluster.await_records(&[&topics.dead_letters], 1, PATIENCE);
    assert_eq!(letters[0].text("code"), "invalid_message");
    assert!(letters[0].text("reason").contains("registry.url is not set"), "{letters:?}");
    stop(worker);
}
