//! `fusioncap verify` over a million references that were answered, or as many as
//! `FUSIONCAP_TEST_VERIFY_REFERENCES` says: time, and memory at its peak.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit::kafka::{Cluster, Topics};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

const REFERENCES: i64 = 1_000_000;
const VARIABLE: &str = "FUSIONCAP_TEST_VERIFY_REFERENCES";
const PARTITIONS: i32 = 6;

type Client = ThreadedProducer<DefaultProducerContext>;

pub async fn measure(cluster: &Cluster) {
    let topics = cluster.topics(PARTITIONS).await;
    let references = std::env::var(VARIABLE).map_or(REFERENCES, |text| text.parse().unwrap());
    fill(cluster, &topics, references);
    let started = Instant::now();
    let mut child = Command::new(kit::binary())
        .args(["verify", "--json", "--brokers", &cluster.bootstrap])
        .args(["--set", &format!("kafka.input_topic={}", topics.input)])
        .args(["--set", &format!("kafka.output_topic={}", topics.output)])
        .args(["--set", &format!("kafka.dead_letter_topic={}", topics.dead_letters)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        peak = high_water(child.id()).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(20));
    };
    let seconds = started.elapsed().as_secs_f64();
    assert!(status.success(), "every reference has one answer");
    println!(
        "verify: {references} references and their answers in {seconds:.1} s \
         ({:.0} records/s), {peak:.0} MB resident at the peak",
        2.0 * references as f64 / seconds
    );
}

/// References, and for each a record with the headers of its answer.
fn fill(cluster: &Cluster, topics: &Topics, references: i64) {
    let client: Client = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("linger.ms", "20")
        .create()
        .unwrap();
    for number in 0..references {
        let partition = (number % i64::from(PARTITIONS)) as i32;
        let request = format!(r#"{{"uri": "s3://photos/{number}.jpg"}}"#);
        send(&client, || {
            BaseRecord::to(&topics.input).partition(partition).key("k").payload(&request)
        });
        let offset = (number / i64::from(PARTITIONS)).to_string();
        let source = partition.to_string();
        send(&client, || {
            let mut headers = OwnedHeaders::new();
            for (key, value) in [
                ("fusioncap-source-topic", topics.input.as_str()),
                ("fusioncap-source-partition", &source),
                ("fusioncap-source-offset", &offset),
                ("fusioncap-source-index", "0"),
            ] {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let output = BaseRecord::to(&topics.output).partition(partition % 3);
            output.key("k").payload("{}").headers(headers)
        });
    }
    client.flush(Duration::from_secs(60)).unwrap();
}

fn send<'a>(client: &Client, record: impl Fn() -> BaseRecord<'a, str, str>) {
    while let Err((error, _)) = client.send(record()) {
        assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The most that was ever resident, in MB.
fn high_water(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1000.0)
}
