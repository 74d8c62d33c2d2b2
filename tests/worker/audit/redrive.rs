//! `fusioncap redrive` puts back what was chosen, byte for byte and once.

use std::collections::BTreeSet;
use std::time::Duration;

use fusioncap::message::{
    DeadLetter, FailedStage, Marker, RawHeader, RawRecord, SourcePosition, header,
};
use fusioncap::{Error, ErrorKind};
use kit::bucket::{BUCKET, Bucket, picture, uri};
use kit::kafka::{Cluster, Topics};
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::{Value, json};

use super::letters::{letter, strange_messages};
use crate::command::Subcommand;
use crate::shared_cluster;
use crate::topic::{self, Raw, Writer, record};

const PATIENCE: Duration = Duration::from_secs(60);

/// The letter of a reference at `offset` of partition `partition`.
pub fn dead_letter(topics: &Topics, at: (i32, i64), original: &RawRecord) -> DeadLetter {
    let source =
        SourcePosition { topic: topics.input.as_str().into(), partition: at.0, offset: at.1 };
    let error = Error::new(ErrorKind::FetchUnavailable, "the store was away");
    DeadLetter::new(&source, 0, None, &error, (FailedStage::Fetch, 3), original)
}

/// Writes a letter as a worker would.
pub fn write(writer: &Writer, topics: &Topics, letter: &DeadLetter) {
    let headers = [
        ("fusioncap-source-topic", topics.input.clone()),
        ("fusioncap-source-partition", letter.source_partition.to_string()),
        ("fusioncap-source-offset", letter.source_offset.to_string()),
        ("fusioncap-source-index", letter.source_index.to_string()),
    ];
    let headers = headers.iter().map(|(name, value)| RawHeader::new(name, value.as_str()));
    let payload = Some(letter.to_json().unwrap());
    let record = RawRecord { key: None, payload, headers: headers.collect() };
    writer.write(&topics.dead_letters, 0, &record);
}

fn markers(letters: &[Raw]) -> usize {
    letters.iter().filter(|raw| Marker::is_marker(&raw.record.headers)).count()
}

fn await_letters(cluster: &Cluster, topics: &Topics, count: usize) -> Vec<Raw> {
    cluster.await_records(&[&topics.dead_letters], count, PATIENCE);
    topic::read(cluster, &topics.dead_letters)
}

#[tokio::test(flavor = "multi_thread")]
async fn mended_references_end_as_captions() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    bucket.put("here.png", &picture(1));
    let event: Vec<Value> = ["here.png", "late-0.png"]
        .iter()
        .map(|key| {
            json!({"eventName": "ObjectCreated:Put",
                   "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}})
        })
        .collect();
    let mut messages = vec![json!({"Records": event}).to_string(), "no JSON".to_owned()];
    messages
        .extend((1..5).map(|late| json!({"uri": uri(&format!("late-{late}.png"))}).to_string()));
    messages.push(json!({"uri": uri("late-5.png"), "id": "mine"}).to_string());
    for (number, message) in messages.iter().enumerate() {
        let (partition, bytes) = (number as i32 % 2, message.as_bytes());
        cluster.produce(&topics.input, partition, "the key", bytes, OwnedHeaders::new()).await;
    }
    let worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    let letters = await_letters(&cluster, &topics, 7);
    let (redrive, verify) = (
        Subcommand::new("redrive", &cluster, &topics),
        Subcommand::new("verify", &cluster, &topics),
    );
    let missing = ["--code", "object_not_found"];

    let (code, summary) = redrive.json(&[&missing[..], &["--dry-run"]].concat());
    assert_eq!((code, &summary["chosen"], &summary["redriven"]), (0, &json!(6), &json!(0)));
    assert_eq!(cluster.stored(&topics.input, 2), 7, "a dry run writes nothing");
    assert_eq!(topic::read(&cluster, &topics.dead_letters).len(), 7);

    for late in 0..5 {
        bucket.put(&format!("late-{late}.png"), &picture(late + 2));
    }
    let (code, summary) = redrive.json(&missing);
    assert_eq!((code, &summary["redriven"]), (0, &json!(6)), "{summary}");
    let counts = json!({"chosen": 6, "already_redriven": 0, "redriven": 6});
    assert_eq!(summary["codes"], json!({"object_not_found": counts}));
    // One object is still missing: its reference fails again.
    let again = await_letters(&cluster, &topics, 7 + 6 + 1);
    let captions = cluster.await_records(&[&topics.output], 6, PATIENCE);
    assert_eq!(markers(&again), 6);
    let ids: BTreeSet<&str> = captions.iter().map(|caption| caption.text("id")).collect();
    let mended: Vec<DeadLetter> = letters
        .iter()
        .map(letter)
        .filter(|letter| letter.code == "object_not_found" && letter.id != "mine")
        .collect();
    assert_eq!(mended.len(), 5);
    assert!(mended.iter().all(|letter| ids.contains(letter.id.as_str())), "ids are kept");
    let here = captions.iter().filter(|caption| caption.text("key") == "here.png").count();
    assert_eq!(here, 1, "the other image of the event is not captioned twice");
    assert_put_back(&cluster, &topics, &messages);

    // A reference that failed again has the same id, and can be put back again; the first letter
    // is done.
    let (code, summary) = redrive.json(&["--id", "mine"]);
    assert_eq!(code, 0);
    assert_eq!((&summary["chosen"], &summary["redriven"]), (&json!(2), &json!(1)), "{summary}");
    await_letters(&cluster, &topics, 7 + 6 + 1 + 2);
    bucket.put("late-5.png", &picture(9));
    let (_, summary) = redrive.json(&missing);
    assert_eq!((&summary["already_redriven"], &summary["redriven"]), (&json!(7), &json!(1)));
    cluster.await_records(&[&topics.output], 7, PATIENCE);
    let last = topic::read(&cluster, &topics.input);
    let times: Vec<_> = last.iter().filter_map(|raw| raw.header(header::REDRIVEN_TIMES)).collect();
    assert_eq!(times.iter().filter(|times| **times == "3").count(), 1, "{times:?}");

    let stored = cluster.stored(&topics.input, 2);
    let (code, summary) = redrive.json(&missing);
    assert_eq!((code, &summary["redriven"]), (0, &json!(0)), "{summary}");
    assert_eq!(cluster.stored(&topics.input, 2), stored, "a second redrive does nothing");
    let (code, report) = verify.json(&[]);
    assert_eq!((code, &report["markers"]), (0, &json!(8)), "{report}");
    assert_eq!(report["unknown"], json!({"no_source": 0, "other_topic": 0, "never_asked": 0}));
    assert_eq!(report["total"]["captions"], 7);
    drop(worker);
}

/// The references of one image are there a second time, in their partition, as they were.
fn assert_put_back(cluster: &Cluster, topics: &Topics, messages: &[String]) {
    let input = topic::read(cluster, &topics.input);
    let back: Vec<&Raw> =
        input.iter().filter(|raw| raw.header(header::REDRIVEN_FROM).is_some()).collect();
    assert_eq!(back.len(), 6);
    for (number, message) in messages.iter().enumerate().skip(2) {
        let same: Vec<_> = back
            .iter()
            .filter(|raw| raw.record.payload.as_deref() == Some(message.as_bytes()))
            .collect();
        let [raw] = same[..] else { panic!("{message} came back {} times", same.len()) };
        assert_eq!(raw.partition, number as i32 % 2);
        assert_eq!(raw.record.key.as_deref(), Some(&b"the key"[..]));
        assert_eq!(raw.record.headers.len(), 3);
    }
    let alone = back.iter().find(|raw| raw.json()["uri"] == uri("late-0.png")).unwrap();
    assert_eq!(alone.partition, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_is_the_original_byte_for_byte() {
    let cluster = shared_cluster();
    let topics = cluster.topics(2).await;
    let writer = Writer::new(&cluster);
    let originals = strange_messages();
    // At offset 0 of partition 1: the one whose letter leaves it out.
    let left_out = RawRecord { payload: Some(vec![b'x'; 900_000]), ..originals[0].clone() };
    writer.write(&topics.input, 1, &left_out);
    for (number, original) in originals.iter().enumerate() {
        write(&writer, &topics, &dead_letter(&topics, (0, number as i64), original));
    }
    for (partition, offset) in [(1, 0), (1, 7)] {
        let mut letter = dead_letter(&topics, (partition, offset), &left_out);
        letter.leave_out_original();
        write(&writer, &topics, &letter);
    }
    // From a partition that does not exist; from another topic; and a record that is not a letter.
    write(&writer, &topics, &dead_letter(&topics, (9, 3), &record("from nine", &[])));
    let mut other = dead_letter(&topics, (0, 3), &record("from elsewhere", &[]));
    other.source_topic = "elsewhere".into();
    write(&writer, &topics, &other);
    writer.write(&topics.dead_letters, 0, &record("no letter", &[]));
    writer.flush();

    let redrive = Subcommand::new("redrive", &cluster, &topics);
    let (code, summary) = redrive.json(&["--all"]);
    assert_eq!(code, 1, "one can't be put back: {summary}");
    let counted = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!((counted("letters"), counted("chosen"), counted("redriven")), (8, 7, 6));
    assert_eq!((counted("other_topic"), counted("unreadable")), (1, 1));
    assert_eq!(summary["not_redrivable"], json!({"gone": 1, "damaged": 0, "too_large": 0}));

    let input = topic::read(&cluster, &topics.input);
    let back = |partition| {
        let there = input.iter().filter(move |raw: &&Raw| raw.partition == partition);
        there
            .filter(|raw| raw.header(header::REDRIVEN_FROM).is_some())
            .map(|raw| {
                let mut record = raw.record.clone();
                let added = record.headers.split_off(record.headers.len() - 2);
                assert!(added.iter().all(|header| header.name.starts_with(b"fusioncap-redriven-")));
                record
            })
            .filter(|record| record.payload.as_deref() != Some(b"from nine"))
            .collect::<Vec<_>>()
    };
    assert_eq!(back(0), originals);
    assert_eq!(back(1), [left_out]);
    let nine = input.iter().filter(|raw| raw.record.payload.as_deref() == Some(b"from nine"));
    assert_eq!(nine.count(), 1);

    let letters = topic::read(&cluster, &topics.dead_letters);
    let marked: BTreeSet<i64> = letters
        .iter()
        .filter_map(|raw| Marker::marked_letter(&raw.record.headers))
        .map(|place| place.offset)
        .collect();
    assert_eq!(marked, BTreeSet::from([0, 1, 2, 3, 4, 6]));
    let (code, summary) = redrive.json(&["--all"]);
    assert_eq!((code, &summary["redriven"]), (1, &json!(0)), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_chosen_by_code_time_and_id() {
    let cluster = shared_cluster();
    let topics = cluster.topics(1).await;
    let writer = Writer::new(&cluster);
    for (number, code) in ["fetch_timeout", "fetch_throttled", "fetch_timeout"].iter().enumerate() {
        let mut letter = dead_letter(&topics, (0, number as i64), &record("{}", &[]));
        letter.code = (*code).to_owned();
        letter.id = format!("id-{number}");
        letter.failed_at = format!("2026-11-2{number}T00:00:00.000000Z");
        write(&writer, &topics, &letter);
    }
    writer.flush();
    let redrive = Subcommand::new("redrive", &cluster, &topics);
    for (arguments, chosen) in [
        (&["--all"][..], 3),
        (&["--code", "fetch_timeout"], 2),
        (&["--code", "fetch_timeout", "--code", "fetch_throttled"], 3),
        (&["--code", "access_denied"], 0),
        (&["--id", "id-0", "--id", "id-2"], 2),
        (&["--since", "2026-11-21T00:00:00Z"], 2),
        (&["--until", "2026-11-21T00:00:00Z"], 1),
        (&["--since", "2026-11-21T00:00:00+01:00", "--code", "fetch_timeout"], 1),
    ] {
        let (code, summary) = redrive.json(&[arguments, &["--dry-run"]].concat());
        assert_eq!((code, &summary["chosen"]), (0, &json!(chosen)), "{arguments:?}");
    }
    for (arguments, parts) in [
        (&[][..], ["no dead letters are selected", "--all"]),
        (&["--all", "--id", "x"], ["--all can't be combined", "--code"]),
        (&["--code", "x"], ["--code can't be 'x'", "object_not_found"]),
        (&["--since", "monday"], ["--since can't be 'monday'", "RFC 3339"]),
        (&["--all", "--batch", "0"], ["--batch can't be '0'", "1 to 10000"]),
    ] {
        let told = redrive.refusal(arguments);
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
    let id = format!("kafka.transactional_id={}-redrive", topics.group);
    let told = redrive.refusal(&["--all", "--set", &id]);
    assert!(told.contains("kafka.transactional_id"), "{told}");
    assert_eq!(cluster.stored(&topics.input, 1), 0);
}
