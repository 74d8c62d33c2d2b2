//! Schemas that grow: readers of the version before read the new records, and the other way round.

use kit::bucket::{Bucket, picture, uri};
use serde_json::{Value, json};

use super::{PATIENCE, ask, await_raw, configuration, payloads, shared_server};
use crate::shared_cluster;

const CAPTION: &str = include_str!("../../../schemas/caption.v1.avsc");
const LETTER: &str = include_str!("../../../schemas/dead-letter.v1.avsc");
const REQUEST: &str = include_str!("../../../schemas/image-request.v1.avsc");

/// The schema with one more field.
fn with_field(schema: &str, field: Value) -> String {
    let mut next: Value = serde_json::from_str(schema).unwrap();
    next["fields"].as_array_mut().unwrap().push(field);
    next.to_string()
}

fn optional(name: &str) -> Value {
    json!({"name": name, "type": ["null", "string"], "default": null, "doc": "New."})
}

/// A record as Avro's JSON writes it: of a union the branch is named.
fn tagged(record: &Value, schema: &str) -> Value {
    let schema: Value = serde_json::from_str(schema).unwrap();
    let mut record = record.clone();
    for field in schema["fields"].as_array().unwrap() {
        let name = field["name"].as_str().unwrap();
        let value = record[name].clone();
        if let (Some([_, branch]), false) =
            (field["type"].as_array().map(Vec::as_slice), value.is_null())
        {
            let branch = branch.as_str().unwrap_or_else(|| branch["type"].as_str().unwrap());
            record[name] = json!({branch: value});
        }
    }
    record
}

/// A worker's own records, and the same ones as a next version would write them, each read by the
/// other's schema; the registry takes the next version, and refuses what would break readers.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_the_next_version_are_read_by_the_previous_one() {
    let (cluster, server, bucket) = (shared_cluster(), shared_server(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    let request = |key: &str| json!({"uri": uri(key)}).to_string().into_bytes();
    ask(&cluster, &topics, &[request("0.png"), request("no.png")]);
    let configuration = configuration(&cluster, &topics, &bucket, &server.url, "  format: avro\n");
    let mut worker = configuration.start();
    for (topic, schema) in [(&topics.output, CAPTION), (&topics.dead_letters, LETTER)] {
        let records = payloads(&await_raw(&cluster, topic, 1));
        let first = server.read_avro(&records, None);
        let subject = format!("{topic}-value");
        let level = format!("/config/{subject}");
        // Both directions from here on: what may follow can be read by both.
        server.send("PUT", &level, &json!({"compatibility": "FULL"})).await;
        let next = with_field(schema, optional("language"));
        let id = server.register(&subject, "AVRO", &next).await;
        assert_eq!(server.get(&format!("/subjects/{subject}/versions")).await, json!([1, 2]));

        let mut newer = first[0].clone();
        newer["language"] = json!("en");
        let written = server.write_avro(id, &[tagged(&newer, &next)]);
        assert_eq!(server.read_avro(&written, None), [newer]);
        assert_eq!(server.read_avro(&written, Some(schema)), first, "by the previous version");
        let mut older = first[0].clone();
        older["language"] = Value::Null;
        assert_eq!(server.read_avro(&records, Some(&next)), [older], "by the next version");

        // A field that no record of the previous version has, nor a default; a type that changes.
        let path = format!("/subjects/{subject}/versions");
        let missing = with_field(&next, json!({"name": "more", "type": "string"}));
        let changed = next.replacen(r#""type":"string""#, r#""type":"int""#, 1);
        assert_ne!(changed, next);
        for refused in [missing, changed] {
            let body = json!({"schemaType": "AVRO", "schema": refused});
            let (status, answer) = server.send("POST", &path, &body).await;
            assert_eq!(status, 409, "{answer}");
        }
    }
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());

    // The previous version comes back beside the next one, and goes on writing its own.
    let mut again = configuration.start();
    ask(&cluster, &topics, &[request("0.png")]);
    let captions = payloads(&await_raw(&cluster, &topics.output, 2));
    assert_eq!(captions[0][..5], captions[1][..5], "the id of version 1");
    again.signal("TERM");
    assert!(again.wait(PATIENCE).success(), "{}", again.log());
}

/// Producers are ahead of a worker, behind it, and have names of their own.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_other_versions_are_read() {
    let (cluster, server, bucket) = (shared_cluster(), shared_server(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    let subject = format!("{}-value", topics.input);
    let next = with_field(REQUEST, optional("priority"));
    let least = json!({"type": "record", "name": "Reference", "namespace": "org.example",
        "fields": [{"name": "uri", "type": "string"}, {"name": "id", "type": "string"}]});
    let strange = json!({"type": "record", "name": "Other", "namespace": "org.example",
        "fields": [{"name": "url", "type": "string"}]});
    server.register(&subject, "AVRO", REQUEST).await;
    let next_id = server.register(&subject, "AVRO", &next).await;
    let own = |kind: &str| format!("{}-{kind}", topics.input);
    let least = server.register(&own("least"), "AVRO", &least.to_string()).await;
    let strange = server.register(&own("strange"), "AVRO", &strange.to_string()).await;
    let newer = json!({"uri": uri("0.png"), "id": "newer", "version_id": null, "etag": null,
        "attributes": {"a": "b"}, "priority": "high"});
    let mut sent = server.write_avro(next_id, &[tagged(&newer, &next)]);
    sent.extend(server.write_avro(least, &[json!({"uri": uri("0.png"), "id": "least"})]));
    sent.extend(server.write_avro(strange, &[json!({"url": uri("0.png")})]));
    ask(&cluster, &topics, &sent);
    // Plain answers to framed requests.
    let mut worker = configuration(&cluster, &topics, &bucket, &server.url, "").start();
    let captions = cluster.await_records(&[&topics.output], 2, PATIENCE);
    let ids: Vec<&str> = captions.iter().map(|caption| caption.text("id")).collect();
    assert!(ids.contains(&"newer") && ids.contains(&"least"), "{ids:?}");
    let letters = cluster.await_records(&[&topics.dead_letters], 1, PATIENCE);
    assert_eq!((letters[0].source(), letters[0].text("code")), ((0, 2), "invalid_message"));
    assert!(letters[0].text("reason").contains("uri"), "{}", letters[0].text("reason"));
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
}

/// The same in JSON Schema, in the one direction that a closed schema has.
#[tokio::test(flavor = "multi_thread")]
async fn the_json_schemas_grow_backward() {
    let server = shared_server();
    for (number, text) in [
        include_str!("../../../schemas/caption.v1.schema.json"),
        include_str!("../../../schemas/dead-letter.v1.schema.json"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut schema: Value = serde_json::from_str(text).unwrap();
        schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
        let subject = format!("grows-{number}-{}", uuid::Uuid::new_v4());
        server.register(&subject, "JSON", &schema.to_string()).await;
        let compatibility = format!("/compatibility/subjects/{subject}/versions/latest");
        let is_compatible = async |schema: &Value| {
            let body = json!({"schemaType": "JSON", "schema": schema.to_string()});
            let (status, answer) = server.send("POST", &compatibility, &body).await;
            assert_eq!(status, 200, "{answer}");
            answer["is_compatible"].as_bool().unwrap()
        };
        let mut narrower = schema.clone();
        narrower["properties"].as_object_mut().unwrap().remove("id");
        narrower["required"].as_array_mut().unwrap().retain(|name| name != "id");
        assert!(!is_compatible(&narrower).await, "it has no room for a field that was written");
        schema["properties"]["language"] = json!({"type": ["string", "null"]});
        assert!(is_compatible(&schema).await);
        server.register(&subject, "JSON", &schema.to_string()).await;
        assert_eq!(server.get(&format!("/subjects/{subject}/versions")).await, json!([1, 2]));
    }
}
