//! The schemas that a worker resolves before it starts, and the refusals to start.

use kit::bucket::{Bucket, picture, uri};
use serde_json::json;

use super::{PATIENCE, ask, await_raw, configuration, shared_server};
use crate::shared_cluster;

/// One line on what is wrong, with exit code 2, and nothing was consumed.
fn assert_refused(worker: &mut kit::process::Worker, parts: &[&str]) {
    assert_eq!(worker.wait(PATIENCE).code(), Some(2), "{}", worker.log());
    let log = worker.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    let [line] = lines[..] else { panic!("one line: {log}") };
    for part in parts {
        assert!(line.contains(part), "no {part}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_schema_is_refused() {
    let (cluster, server, bucket) = (shared_cluster(), shared_server(), Bucket::start());
    let topics = cluster.topics(1).await;
    let subject = format!("{}-value", topics.output);
    // A caption of which ours can't make its own: the type of its id is another one.
    let schema = r#"{"type": "record", "name": "Caption", "namespace": "io.github.fusioncap",
        "fields": [{"name": "id", "type": "long"}]}"#;
    server.register(&subject, "AVRO", schema).await;
    for (format, reason) in [("avro", "at /fields/"), ("json-schema", "it is AVRO, and ours JSON")]
    {
        let fields = format!("  format: {format}\n");
        let mut worker = configuration(&cluster, &topics, &bucket, &server.url, &fields).start();
        let line = "the schema is not compatible with the one registered";
        assert_refused(&mut worker, &[line, &subject, "version: 1", reason]);
    }
}

/// Where the registry would take anything, the worker looks for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_checks_nothing_is_not_believed() {
    let (cluster, server, bucket) = (shared_cluster(), shared_server(), Bucket::start());
    let topics = cluster.topics(1).await;
    let subject = format!("{}-value", topics.dead_letters);
    let schema = r#"{"type": "record", "name": "DeadLetter", "namespace": "io.github.fusioncap",
        "fields": [{"name": "id", "type": "string"}]}"#;
    server.register(&subject, "AVRO", schema).await;
    let path = format!("/config/{subject}");
    server.send("PUT", &path, &json!({"compatibility": "NONE"})).await;
    let mut worker =
        configuration(&cluster, &topics, &bucket, &server.url, "  format: avro\n").start();
    assert_refused(&mut worker, &["not compatible", &subject, "version: 1"]);
    assert_eq!(server.get(&format!("/subjects/{subject}/versions")).await, json!([1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_only_looked_up_where_that_is_asked_for() {
    let (cluster, server, bucket) = (shared_cluster(), shared_server(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    let fields = "  format: avro\n  auto_register: false\n  subject_name_strategy: \
                  topic-record-name\n";
    let lookup = configuration(&cluster, &topics, &bucket, &server.url, fields);
    let subject = format!("{}-io.github.fusioncap.Caption", topics.output);
    let mut refused = lookup.start();
    assert_refused(&mut refused, &["does not have the schema", &subject, "registry.auto_register"]);
    let subjects = server.get("/subjects").await;
    assert!(!subjects.as_array().unwrap().contains(&json!(subject)), "{subjects}");
    // An operator registers the schemas, as a human would write them.
    let caption = include_str!("../../../schemas/caption.v1.avsc");
    let letter = include_str!("../../../schemas/dead-letter.v1.avsc");
    let id = server.register(&subject, "AVRO", caption).await;
    let subject = format!("{}-io.github.fusioncap.DeadLetter", topics.dead_letters);
    server.register(&subject, "AVRO", letter).await;
    let mut worker = lookup.start();
    ask(&cluster, &topics, &[json!({"uri": uri("0.png")}).to_string().into_bytes()]);
    let captions = await_raw(&cluster, &topics.output, 1);
    let payload = captions[0].record.payload.as_deref().unwrap();
    assert_eq!(payload[1..5], id.to_be_bytes());
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_out_of_reach_is_named() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    let url = "http://127.0.0.1:1/";
    let mut worker = configuration(&cluster, &topics, &bucket, url, "  format: avro\n").start();
    assert_eq!(worker.wait(PATIENCE).code(), Some(1), "{}", worker.log());
    let log = worker.log();
    assert!(
        log.contains("the schema registry does not answer (registry.url: http://127.0.0.1:1/)")
    );
    assert!(log.contains("the schema registry is asked again"), "{log}");
}
