//! `fusioncap verify` counts exactly what is there.

use std::time::{Duration, Instant};

use fusioncap::message::{RawHeader, RawRecord};
use kit::bucket::{BUCKET, Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::Configuration;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::command::Subcommand;
use crate::shared_cluster;
use crate::topic::{self, Writer, record};

const PATIENCE: Duration = Duration::from_secs(90);
const MESSAGES: usize = 300;
const PARTITIONS: i32 = 3;

/// The message with this number, and the captions and dead letters that it causes.
fn message(number: usize) -> (String, usize, usize) {
    let event = |keys: &[&str], name: &str| {
        let records: Vec<Value> = keys
            .iter()
            .map(|key| {
                json!({"eventName": name,
                       "s3": {"bucket": {"name": BUCKET}, "object": {"key": key}}})
            })
            .collect();
        json!({"Records": records}).to_string()
    };
    match number % 20 {
        3 => (event(&["0.png", "missing.png", "1.png"], "ObjectCreated:Put"), 2, 1),
        7 => ("no JSON".to_owned(), 0, 1),
        11 => (event(&["0.png"], "ObjectRemoved:Delete"), 0, 0),
        13 => (json!({"uri": uri("missing.png")}).to_string(), 0, 1),
        _ => (json!({"uri": uri(&format!("{}.png", number % 5))}).to_string(), 1, 0),
    }
}

/// Produces messages; the captions and dead letters that they ask for.
async fn produce(cluster: &Cluster, topics: &Topics) -> (usize, usize) {
    let producer = cluster.producer();
    let (mut captions, mut letters) = (0, 0);
    let deliveries = (0..MESSAGES).map(|number| {
        let (payload, some, others) = message(number);
        captions += some;
        letters += others;
        let (producer, topic) = (producer.clone(), topics.input.clone());
        let partition = number as i32 % PARTITIONS;
        async move {
            let headers = OwnedHeaders::new();
            deliver(&producer, &topic, partition, "k", payload.as_bytes(), headers).await
        }
    });
    let deliveries: Vec<_> = deliveries.collect();
    futures::future::join_all(deliveries).await;
    (captions, letters)
}

fn fill(bucket: &Bucket) {
    for number in 0..5 {
        bucket.put(&format!("{number}.png"), &picture(number));
    }
}

fn total(report: &Value, name: &str) -> u64 {
    report["total"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_accounted_for_and_each_trouble_counted() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    let (captions, letters) = produce(&cluster, &topics).await;
    cluster.await_records(&[&topics.output], captions, PATIENCE);
    cluster.await_records(&[&topics.dead_letters], letters, PATIENCE);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());

    let verify = Subcommand::new("verify", &cluster, &topics);
    for arguments in [&[][..], &["--committed"]] {
        let (code, report) = verify.json(arguments);
        assert_eq!(code, 0, "{report}");
        assert_eq!(total(&report, "messages"), MESSAGES as u64);
        assert_eq!(total(&report, "references"), (captions + letters) as u64);
        assert_eq!(total(&report, "captions"), captions as u64);
        assert_eq!(total(&report, "dead_letters"), letters as u64);
        for trouble in ["missing", "duplicated", "reordered"] {
            assert_eq!(total(&report, trouble), 0, "{report}");
        }
        assert_eq!(report["unknown"], json!({"no_source": 0, "other_topic": 0, "never_asked": 0}));
        assert_eq!(report["out_of_range"], 0);
    }
    let text = verify.output(&[]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.lines().any(|line| line.trim_start().starts_with("total")), "{text}");

    let writer = Writer::new(&cluster);
    // Nobody answers the first of these; the other two are answered in the wrong order below.
    for _ in 0..3 {
        writer.write(&topics.input, 0, &record(&json!({"uri": uri("0.png")}).to_string(), &[]));
        writer.flush();
    }
    let first_captions = topic::read(&cluster, &topics.output);
    let copied = first_captions.iter().find(|raw| raw.header(SOURCE_PARTITION) == Some("0"));
    let copied = copied.unwrap();
    writer.write(&topics.output, copied.partition, &copied.record);
    let asked = MESSAGES as i64 / i64::from(PARTITIONS);
    for offset in [asked + 2, asked + 1, asked + 3] {
        // The last was never asked for.
        let headers = copied.record.headers.iter().map(|header| {
            let is_offset = header.name == SOURCE_OFFSET.as_bytes();
            if is_offset {
                RawHeader::new(SOURCE_OFFSET, offset.to_string())
            } else {
                header.clone()
            }
        });
        let answer = RawRecord { headers: headers.collect(), ..copied.record.clone() };
        writer.write(&topics.output, 0, &answer);
    }
    writer.write(&topics.output, 1, &record("{}", &[]));
    let elsewhere = [
        ("fusioncap-source-topic", "elsewhere"),
        (SOURCE_PARTITION, "0"),
        (SOURCE_OFFSET, "0"),
        ("fusioncap-source-index", "0"),
    ];
    writer.write(&topics.dead_letters, 0, &record("{}", &elsewhere));
    writer.flush();

    let (code, report) = verify.json(&[]);
    assert_eq!(code, 1);
    assert_eq!(total(&report, "references"), (captions + letters + 3) as u64);
    assert_eq!(total(&report, "captions"), captions as u64 + 2);
    for trouble in ["missing", "duplicated", "reordered"] {
        assert_eq!(total(&report, trouble), 1, "{trouble}: {report}");
        let partition = &report["partitions"][0];
        assert_eq!(partition[trouble], 1, "{trouble}: {partition}");
    }
    assert_eq!(report["unknown"], json!({"no_source": 1, "other_topic": 1, "never_asked": 1}));
    let missing = json!([{"partition": 0, "offset": asked, "index": 0}]);
    assert_eq!(report["examples"]["missing"], missing);
    assert_eq!(report["examples"]["duplicated"][0]["partition"], copied.partition);

    // The group has committed nothing of what came after its worker.
    let (code, report) = verify.json(&["--committed"]);
    assert_eq!((code, total(&report, "missing")), (1, 0), "{report}");
    assert_eq!((total(&report, "duplicated"), &report["out_of_range"]), (1, &json!(2)));

    assert_narrowed(&verify, asked, copied.header(SOURCE_OFFSET).unwrap());
}

const SOURCE_PARTITION: &str = "fusioncap-source-partition";
const SOURCE_OFFSET: &str = "fusioncap-source-offset";

/// Without the offset of the duplicate, and what was asked afterwards, all is well.
fn assert_narrowed(verify: &Subcommand, asked: i64, duplicate: &str) {
    let from = format!("0={}", duplicate.parse::<i64>().unwrap() + 1);
    let to = format!("0={asked}");
    let (code, report) = verify.json(&["--from", &from, "--to", &to]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["partitions"][1]["missing"], 0);
    assert!(report["out_of_range"].as_u64().unwrap() >= 4, "{report}");
    let beyond = format!("0={}", asked + 4);
    for (arguments, parts) in [
        (["--to", beyond.as_str()], [beyond.as_str(), "offsets from 0 to"]),
        (["--from", "3=0"], ["3=0", "the partitions 0, 1, 2"]),
        (["--to", "x"], ["--to", "PARTITION=OFFSET"]),
    ] {
        let told = verify.refusal(&arguments);
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
}

/// With the offsets that the group has committed, nothing looks missing while a worker works.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_at_work_loses_nothing_in_the_account() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let verify = Subcommand::new("verify", &cluster, &topics);
    let (captions, letters) = produce(&cluster, &topics).await;
    let mut asked = (captions + letters) as u64;
    let nothing = verify.output(&["--committed"]);
    let errors = String::from_utf8(nothing.stderr).unwrap();
    assert_eq!(nothing.status.code(), Some(1));
    assert!(errors.contains("has committed no offset") && errors.contains(&topics.group));
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .without_coalescing()
        // So that there are many transactions to come between.
        .replacing("  size: 8", "  size: 1")
        .start();
    worker.await_ready();
    let deadline = Instant::now() + PATIENCE;
    while cluster.committed(&topics.group, &topics.input, PARTITIONS) == 0 {
        assert!(Instant::now() < deadline, "{}", worker.log());
    }
    let mut met_at_work = false;
    loop {
        assert!(Instant::now() < deadline, "met at work: {met_at_work}\n{}", worker.log());
        let (code, report) = verify.json(&["--committed"]);
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["unknown"]["never_asked"], 0, "{report}");
        let references = total(&report, "references");
        met_at_work |= references > 0 && references < asked;
        if references == asked && met_at_work {
            return;
        }
        if references == asked {
            // It was done before anybody looked.
            let (captions, letters) = produce(&cluster, &topics).await;
            asked += (captions + letters) as u64;
        }
    }
}

/// An answer inside an open transaction is neither missing nor passed over: its end is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_is_waited_for() {
    let cluster = shared_cluster();
    let topics = cluster.topics(1).await;
    let writer = Writer::new(&cluster);
    for _ in 0..2 {
        writer.write(&topics.input, 0, &record(&json!({"uri": uri("0.png")}).to_string(), &[]));
    }
    writer.flush();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("transactional.id", format!("{}-open", topics.group))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    for offset in ["0", "1"] {
        let mut headers = OwnedHeaders::new();
        for (key, value) in [
            ("fusioncap-source-topic", topics.input.as_str()),
            (SOURCE_PARTITION, "0"),
            (SOURCE_OFFSET, offset),
            ("fusioncap-source-index", "0"),
        ] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let answer = BaseRecord::<str, str>::to(&topics.output).payload("{}").headers(headers);
        producer.send(answer.partition(0)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();

    let verify = Subcommand::new("verify", &cluster, &topics);
    let mut running = verify.start(&["--json"]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(running.is_running(), "it did not wait: {:?}", running.wait());
    producer.commit_transaction(PATIENCE).unwrap();
    let (code, out, errors) = running.wait();
    assert_eq!(code, Some(0), "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((total(&report, "captions"), total(&report, "missing")), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_and_an_unreachable_broker_are_named() {
    let cluster = shared_cluster();
    let topics = cluster.topics(1).await;
    let nowhere = Topics { output: "nowhere".into(), ..topics.clone() };
    let output = Subcommand::new("verify", &cluster, &nowhere).output(&[]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("kafka.output_topic") && errors.contains("nowhere"), "{errors}");
    let verify = Subcommand::new("verify", &cluster, &topics);
    let output = verify.output(&["--brokers", "127.0.0.1:1"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("kafka.brokers") && errors.contains("127.0.0.1:1"), "{errors}");
}
