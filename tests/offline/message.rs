//! The records on the three topics against their schemas, and against what producers really send.

use std::fs;
use std::sync::Arc;

use fusioncap::bundle::Bundle;
use fusioncap::message::{
    CaptionRecord, DeadLetter, FailedStage, Marker, RawHeader, RawRecord, Requests, RetainedParts,
    SourcePosition, TraceContext, header, parse,
};
use fusioncap::{Error, ErrorKind};
use jsonschema::{Registry, Resource, Validator};
use kit::root;
use proptest::prelude::*;
use serde_json::{Value, json};

const SCHEMAS: [&str; 6] = [
    "image-request",
    "s3-event-notification",
    "cloud-event",
    "caption",
    "dead-letter",
    "dead-letter-marker",
];

fn json_file(path: &str) -> Value {
    serde_json::from_slice(&fs::read(root(path)).unwrap()).unwrap()
}

fn schema(name: &str) -> Value {
    json_file(&format!("schemas/{name}.v1.schema.json"))
}

fn assert_valid(name: &str, record: &Value) {
    let resources = SCHEMAS.map(|other| {
        let value = schema(other);
        let id = value["$id"].as_str().unwrap().to_owned();
        (id, Resource::from_contents(value))
    });
    let registry = Registry::new().extend(resources).unwrap().prepare().unwrap();
    let validator: Validator =
        jsonschema::options().with_registry(&registry).build(&schema(name)).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(record)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {record}");
}

fn source() -> SourcePosition {
    SourcePosition { topic: Arc::from("images.in"), partition: 3, offset: 41 }
}

fn read(name: &str) -> Requests {
    let payload = fs::read(root(&format!("tests/data/messages/{name}.json"))).unwrap();
    parse(&payload, &[], &source()).unwrap()
}

fn refusal(payload: &str) -> (ErrorKind, String) {
    let error = parse(payload.as_bytes(), &[], &source()).unwrap_err();
    (error.kind(), error.chain())
}

#[test]
fn real_messages_fit_their_schemas() {
    assert_valid("image-request", &json_file("tests/data/messages/request.json"));
    for name in ["aws", "aws-test", "minio", "ceph"] {
        let message = json_file(&format!("tests/data/messages/{name}.json"));
        assert_valid("s3-event-notification", &message);
    }
    for name in ["cloud-event", "cloud-event-base64", "cloud-event-s3"] {
        assert_valid("cloud-event", &json_file(&format!("tests/data/messages/{name}.json")));
    }
}

#[test]
fn every_field_has_a_description() {
    fn check(place: &str, value: &Value) {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            for (name, field) in properties {
                let described = field.get("description").is_some() || field.get("$ref").is_some();
                assert!(described, "{place}.{name} has no description");
            }
        }
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, inner)| check(&format!("{place}.{name}"), inner))
            }
            Value::Array(items) => items.iter().for_each(|inner| check(place, inner)),
            _ => {}
        }
    }
    for name in SCHEMAS {
        check(name, &schema(name));
    }
}

#[test]
fn our_request_is_read() {
    let requests = read("request");
    let image = &requests.images[0];
    assert_eq!((image.bucket.as_str(), image.key.as_str()), ("photos", "2025/cat 1.jpg"));
    assert_eq!((image.id.as_str(), image.uri().as_str()), ("cat-1", "s3://photos/2025/cat 1.jpg"));
    assert_eq!(image.version_id.as_deref(), Some("v7"));
    assert_eq!(image.etag.as_deref(), Some("abc"));
    assert_eq!(image.attributes["album"], "pets");
}

#[test]
fn aws_events_are_read_record_by_record() {
    let requests = read("aws");
    assert_eq!(requests.skipped, 1);
    let keys: Vec<&str> = requests.images.iter().map(|image| image.key.as_str()).collect();
    assert_eq!(keys, ["red flower, 1.jpg", "café.png"]);
    assert_eq!(requests.images[0].id, source().id(0));
    assert_eq!(requests.images[1].id, source().id(1), "the index is that of the headers");
    assert_eq!(read("aws-test"), Requests { images: vec![], skipped: 1 });
}

#[test]
fn minio_and_ceph_events_are_read() {
    assert_eq!(read("minio").images[0].key, "a/b.png");
    let ceph = read("ceph");
    assert_eq!(ceph.images[0].key, "c.png");
    assert_eq!(ceph.images[0].version_id, None, "an empty version is none");
}

#[test]
fn cloud_events_are_opened() {
    for (name, key) in
        [("cloud-event", "d.png"), ("cloud-event-base64", "e.png"), ("cloud-event-s3", "f.png")]
    {
        assert_eq!(read(name).images[0].key, key);
    }
    let headers = |version: &str| vec![RawHeader::new("ce_specversion", version)];
    let payload = br#"{"uri": "s3://photos/g.png"}"#;
    let binary = parse(payload, &headers("1.0"), &source()).unwrap();
    assert_eq!(binary.images[0].key, "g.png");
    let old = parse(payload, &headers("0.3"), &source()).unwrap_err();
    assert_eq!(old.kind(), ErrorKind::InvalidMessage);
}

#[test]
fn what_is_wrong_is_said() {
    for (payload, part) in [
        ("", "empty"),
        ("{", "JSON"),
        ("[1]", "image request"),
        (r#"{"url": "s3://a/b"}"#, "url"),
        (r#"{"uri": 7}"#, "string"),
        (r#"{"uri": "s3://a/b", "attributes": {"n": 1}}"#, "string"),
        (r#"{"Records": 1}"#, "Records"),
        (r#"{"Records": [{"eventName": "ObjectCreated:Put"}]}"#, "s3"),
        (r#"{"specversion": "1.0"}"#, "data"),
    ] {
        let (kind, text) = refusal(payload);
        assert_eq!(kind, ErrorKind::InvalidMessage, "{payload}");
        assert!(text.contains(part) && !text.contains('\n'), "{payload}: {text}");
    }
    for uri in ["https://a/b", "s3://a", "s3:///b", "s3://a/"] {
        assert_eq!(refusal(&json!({"uri": uri}).to_string()).0, ErrorKind::UnsupportedUri, "{uri}");
    }
}

/// The dead letter of any message fits into a record.
#[test]
fn a_long_field_is_refused_and_not_repeated() {
    let long = "x\n".repeat(400_000);
    for payload in [
        json!({"uri": format!("s3://photos/{long}")}),
        json!({"uri": format!("s3://{long}/a.png")}),
        json!({"uri": "s3://photos/a.png", "id": long}),
        json!({"uri": "s3://photos/a.png", "etag": long}),
        json!({"uri": "s3://photos/a.png", "version_id": long}),
        json!({"uri": "s3://photos/a.png", &long: 1}),
        json!({"Records": [{"eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "photos"}, "object": {"key": long}}}]}),
    ] {
        let error = parse(payload.to_string().as_bytes(), &[], &source()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMessage);
        let original = RawRecord::default();
        let letter =
            DeadLetter::new(&source(), 0, None, &error, (FailedStage::Consume, 1), &original);
        assert!(letter.to_json().unwrap().len() < 8192);
        assert!(!letter.reason.contains('\n'), "{}", letter.reason);
    }
}

/// Each image that fails repeats its whole message: thousands of them would be gigabytes.
#[test]
fn a_message_of_thousands_of_images_is_refused() {
    let record = json!({"eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "photos"}, "object": {"key": "a.png"}}});
    let notification = |images: usize| json!({"Records": vec![&record; images]}).to_string();
    let few = notification(500);
    assert_eq!(parse(few.as_bytes(), &[], &source()).unwrap().images.len(), 500);
    let (kind, text) = refusal(&notification(2000));
    assert_eq!(kind, ErrorKind::InvalidMessage);
    assert!(text.contains("too many images") && text.contains("2000"), "{text}");
}

/// Names that no request may be made for are refused here, in every shape of message.
#[test]
fn names_that_lead_elsewhere_are_refused() {
    let event = |bucket: &str, key: &str| {
        json!({"Records": [{"eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]})
    };
    for message in [
        json!({"uri": "s3://evil@host/a.png"}),
        json!({"uri": "s3://127.0.0.1:9000/a.png"}),
        json!({"uri": "s3://../a.png"}),
        json!({"uri": "s3://photos/../secrets/a.png"}),
        event("evil.example/x", "a.png"),
        event("photos", "a/%2e%2e/b.png"),
        event("photos", "a%0d%0aX-Evil:+1"),
        json!({"specversion": "1.0", "data": event("arn:aws:s3:::photos", "a.png")}),
    ] {
        let (kind, text) = refusal(&message.to_string());
        assert_eq!(kind, ErrorKind::UnsupportedUri, "{message}");
        assert!(!text.contains(char::is_control), "{text}");
    }
}

#[test]
fn captions_fit_their_schema() {
    let bundle = Bundle::open(&root("models/random")).unwrap();
    let image = read("request").images.remove(0);
    let mut record = CaptionRecord::new(&source(), &image, &bundle.identity());
    record.caption = "a cat on a chair".into();
    record.score = -1.25;
    record.content_type = "image/jpeg".into();
    (record.width, record.height) = (451, 300);
    let plain: Value = serde_json::from_slice(&record.to_json().unwrap()).unwrap();
    assert_valid("caption", &plain);
    assert!(plain.get("embedding").is_none());
    record.embedding = Some(vec![0.6, 0.8]);
    assert_valid("caption", &serde_json::from_slice(&record.to_json().unwrap()).unwrap());
    let back: CaptionRecord = serde_json::from_slice(&record.to_json().unwrap()).unwrap();
    assert_eq!(back, record);
}

#[test]
fn dead_letters_of_every_kind_fit_their_schema() {
    for kind in ErrorKind::DEAD_LETTERS {
        let error =
            Error::new(kind, "it went wrong").with_context("key", "k").with_source("a cause");
        let images = read("request").images;
        for request in [None, images.first()] {
            let original = original();
            let letter =
                DeadLetter::new(&source(), 0, request, &error, (FailedStage::Fetch, 3), &original);
            let value: Value = serde_json::from_slice(&letter.to_json().unwrap()).unwrap();
            assert_valid("dead-letter", &value);
            assert_eq!(value["code"], kind.code());
        }
    }
    let listed = schema("dead-letter")["properties"]["code"]["enum"].as_array().unwrap().len();
    assert_eq!(listed, ErrorKind::DEAD_LETTERS.len());
}

/// A message with everything that may be mistaken for something else.
fn original() -> RawRecord {
    let header = |name: &[u8], value: Option<&[u8]>| RawHeader {
        name: name.to_vec(),
        value: value.map(<[u8]>::to_vec),
    };
    RawRecord {
        key: Some(b"\x00key".to_vec()),
        payload: Some(b"{}".to_vec()),
        headers: vec![
            header(b"twice", Some(b"1")),
            header(b"twice", Some(b"2")),
            header(b"", Some(b"")),
            header(b"none", None),
            header(b"caf\xe9", Some(b"\xff")),
        ],
    }
}

#[test]
fn a_dead_letter_gives_the_original_back_byte_for_byte() {
    let error = Error::new(ErrorKind::InvalidMessage, "no JSON");
    let (whole, mut cases) = (original(), vec![original(), RawRecord::default()]);
    cases.push(RawRecord { payload: None, ..whole.clone() });
    cases.push(RawRecord { payload: Some(Vec::new()), key: Some(Vec::new()), ..whole });
    for case in cases {
        let letter = DeadLetter::new(&source(), 0, None, &error, (FailedStage::Consume, 1), &case);
        let value: Value = serde_json::from_slice(&letter.to_json().unwrap()).unwrap();
        assert_valid("dead-letter", &value);
        let back: DeadLetter = serde_json::from_value(value).unwrap();
        assert_eq!(back.original_record().unwrap(), Some(case));
    }
    let mut letter =
        DeadLetter::new(&source(), 0, None, &error, (FailedStage::Consume, 1), &original());
    let names: Vec<&str> = letter.headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(names, ["twice", "twice", "", "none", "caf\u{fffd}"]);
    letter.leave_out_original();
    assert_valid("dead-letter", &serde_json::to_value(&letter).unwrap());
    assert_eq!(letter.original_record().unwrap(), None);
    // As letters were before they kept headers.
    let mut old = serde_json::to_value(&letter).unwrap();
    for name in ["original", "headers"] {
        old.as_object_mut().unwrap().remove(name);
    }
    old["payload_base64"] = json!("e30=");
    let old: DeadLetter = serde_json::from_value(old).unwrap();
    assert_eq!((old.original, old.original_record().unwrap()), (RetainedParts::LeftOut, None));
}

#[test]
fn a_dead_letter_that_is_damaged_is_refused() {
    let error = Error::new(ErrorKind::InvalidMessage, "no JSON");
    let letter =
        DeadLetter::new(&source(), 0, None, &error, (FailedStage::Consume, 1), &original());
    for path in ["/payload_base64", "/key_base64", "/headers/0/value_base64"] {
        let mut value = serde_json::to_value(&letter).unwrap();
        *value.pointer_mut(path).unwrap() = json!("?");
        let damaged: DeadLetter = serde_json::from_value(value).unwrap();
        assert_eq!(
            damaged.original_record().unwrap_err().kind(),
            ErrorKind::InvalidMessage,
            "{path}"
        );
    }
}

#[test]
fn markers_name_their_dead_letter() {
    let error = Error::new(ErrorKind::InvalidMessage, "no JSON");
    let letter =
        DeadLetter::new(&source(), 0, None, &error, (FailedStage::Consume, 1), &original());
    let position = SourcePosition { topic: "images.dlq".into(), partition: 2, offset: 17 };
    let marker = Marker::new(&letter, &position, 1);
    assert_valid("dead-letter-marker", &serde_json::to_value(&marker).unwrap());
    let headers = [RawHeader::new(header::REDRIVEN, position.to_string())];
    assert!(Marker::is_marker(&headers));
    assert_eq!(Marker::marked_letter(&headers), Some(position));
    for broken in ["", "images.dlq", "images.dlq/2", "a/b/c", "a/1/2/3"] {
        let headers = [RawHeader::new(header::REDRIVEN, broken)];
        assert!(Marker::is_marker(&headers));
        assert_eq!(Marker::marked_letter(&headers), None, "{broken}");
    }
    assert!(!Marker::is_marker(&original().headers));
}

#[test]
fn a_redriven_reference_keeps_its_id() {
    let redriven = [RawHeader::new(header::REDRIVEN_ID, "first")];
    let id = |payload: &[u8]| parse(payload, &redriven, &source()).unwrap().images[0].id.clone();
    assert_eq!(id(br#"{"uri": "s3://photos/a.png"}"#), "first");
    let aws = fs::read(root("tests/data/messages/aws.json")).unwrap();
    assert_eq!(id(&aws), source().id(0), "one id is not for several images");
    let empty = [RawHeader::new(header::REDRIVEN_ID, "")];
    let image = parse(br#"{"uri": "s3://photos/a.png"}"#, &empty, &source()).unwrap();
    assert_eq!(image.images[0].id, source().id(0));
}

#[test]
fn a_request_is_read_as_it_was_written() {
    for name in ["request", "aws", "minio", "ceph", "cloud-event-s3"] {
        for image in read(name).images {
            assert_valid("image-request", &serde_json::from_slice(&image.to_json()).unwrap());
            assert_eq!(parse(&image.to_json(), &[], &source()).unwrap().images, [image]);
        }
    }
}

/// Each code has one row of `docs/dead-letters.md`, in order, with the stages at which it arises.
#[test]
fn every_code_is_documented() {
    let page = fs::read_to_string(root("docs/dead-letters.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let codes: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(codes, ErrorKind::DEAD_LETTERS.map(ErrorKind::code));
    for row in &rows {
        let [code, stages, meaning, remedy, helps] = row[..] else { panic!("{row:?}") };
        for stage in stages.split(", ") {
            let known: Result<FailedStage, _> = serde_json::from_value(json!(stage));
            assert!(known.is_ok(), "{code}: {stage} is not a stage");
        }
        assert!(meaning.ends_with('.') && remedy.ends_with('.'), "{row:?}");
        assert!(helps.starts_with("yes") || helps.starts_with("no"), "{row:?}");
    }
}

#[test]
fn headers_say_where_a_record_came_from() {
    let trace = TraceContext::fresh();
    let headers = header::source_headers(&source(), 2, &trace);
    let raw: Vec<RawHeader> =
        headers.iter().map(|(name, value)| RawHeader::new(name, value.clone())).collect();
    assert_eq!(header::parse_source(&raw), Some((source(), 2)));
    for (broken, text) in [(1, "-1"), (2, "x"), (3, "")] {
        let mut wrong = raw.clone();
        wrong[broken].value = Some(text.into());
        assert_eq!(header::parse_source(&wrong), None, "{text}");
        wrong.remove(broken);
        assert_eq!(header::parse_source(&wrong), None);
    }
    let find = |name: &str| {
        let (_, value) = headers.iter().find(|(found, _)| *found == name).unwrap();
        String::from_utf8(value.clone()).unwrap()
    };
    assert_eq!(find(header::SOURCE_TOPIC), "images.in");
    assert_eq!(find(header::SOURCE_PARTITION), "3");
    assert_eq!(find(header::SOURCE_OFFSET), "41");
    assert_eq!(find(header::SOURCE_INDEX), "2");
    assert_eq!(find("traceparent"), trace.traceparent);
}

#[test]
fn ids_are_the_same_at_every_reading() {
    assert_eq!(source().id(0), "7551c5a0-8c9e-548d-91a1-454e4576a633");
    let other = SourcePosition { offset: 42, ..source() };
    assert_ne!(source().id(0), other.id(0));
    assert_ne!(source().id(0), source().id(1));
}

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))
}

proptest! {
    #[test]
    fn any_original_survives_its_dead_letter(
        (key, payload) in (bytes(), bytes()),
        headers in proptest::collection::vec((bytes(), bytes()), 0..6),
    ) {
        let raw = |(name, value): (Option<Vec<u8>>, _)| RawHeader {
            name: name.unwrap_or_default(),
            value,
        };
        let original = RawRecord { key, payload, headers: headers.into_iter().map(raw).collect() };
        let error = Error::new(ErrorKind::InvalidMessage, "no JSON");
        let letter =
            DeadLetter::new(&source(), 0, None, &error, (FailedStage::Consume, 1), &original);
        let back: DeadLetter = serde_json::from_slice(&letter.to_json().unwrap()).unwrap();
        prop_assert_eq!(back.original_record().unwrap(), Some(original));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&payload, &[], &source());
    }

    #[test]
    fn no_json_makes_the_parser_panic(
        shape in 0..5_usize,
        text in ".{0,40}",
        number in any::<i64>(),
    ) {
        let payload = match shape {
            0 => json!({"uri": text, "etag": number}),
            1 => json!({"uri": text}),
            2 => json!({"Records": [{"eventName": text, "s3": {"object": {"key": text}}}]}),
            3 => json!({"specversion": "1.0", "data": text, "data_base64": text}),
            _ => json!({"Records": [{"eventName": "ObjectCreated:x",
                "s3": {"bucket": {"name": text}, "object": {"key": text, "eTag": text}}}]}),
        };
        let _ = parse(payload.to_string().as_bytes(), &[], &source());
    }
}
