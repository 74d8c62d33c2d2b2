//! The worker's records are compressed in the brokers' files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Cluster, Topics, deliver};
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);
const REFERENCES: usize = 500;
const NONE: u8 = 0;
const ZSTD: u8 = 4;

/// The compression of each batch of records in a topic's files, and the files' bytes.
fn batches(cluster: &Cluster, topic: &str) -> (Vec<u8>, usize) {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for path in segments(cluster.folder(), topic) {
        let log = std::fs::read(path).unwrap();
        let mut rest = log.as_slice();
        // Offset (8 bytes), length of what follows (4), epoch (4), magic (1), checksum (4),
        // attributes (2): https://kafka.apache.org/documentation/#recordbatch
        while rest.len() > 23 {
            let length = u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
            if length == 0 {
                break;
            }
            assert_eq!(rest[16], 2, "the format of record batches is another");
            let attributes = rest[22];
            let is_control = attributes & 0x20 != 0;
            if !is_control {
                found.push(attributes & 0x07);
                bytes += 12 + length;
            }
            rest = &rest[12 + length..];
        }
    }
    (found, bytes)
}

/// The log files of every partition of a topic.
fn segments(folder: &Path, topic: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(segments(&path, topic));
            continue;
        }
        let of = path.parent().and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
        if of.starts_with(topic) && path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
    found
}

async fn caption_all(cluster: &Cluster, topics: &Topics, change: &[(&str, &str)]) {
    let bucket = Bucket::start();
    for number in 0..20 {
        bucket.put(&format!("{number}.png"), &picture(number));
    }
    let producer = cluster.producer();
    for number in 0..REFERENCES {
        let payload = json!({"uri": uri(&format!("{}.png", number % 20))}).to_string();
        let headers = OwnedHeaders::new();
        deliver(&producer, &topics.input, 0, "k", payload.as_bytes(), headers).await;
    }
    let mut configuration = Configuration::new("one", cluster, topics, &bucket);
    for (name, value) in change {
        configuration = configuration.with_property(name, value);
    }
    let _worker = configuration.start();
    let records = cluster.await_records(&[&topics.output], REFERENCES, PATIENCE);
    assert_eq!(records.len(), REFERENCES);
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_are_stored_compressed_unless_a_property_says_otherwise() {
    let cluster = shared_cluster();
    if !cluster.is_ours() {
        // Its files are out of reach.
        return;
    }
    let (plain, packed) = (cluster.topics(1).await, cluster.topics(1).await);
    caption_all(&cluster, &packed, &[]).await;
    caption_all(&cluster, &plain, &[("compression.codec", "none")]).await;
    let (found, small) = batches(&cluster, &packed.output);
    assert!(found.contains(&ZSTD), "{found:?}");
    // librdkafka leaves a batch as it is where compressing would make it larger.
    assert!(found.iter().all(|codec| [NONE, ZSTD].contains(codec)), "{found:?}");
    let (found, large) = batches(&cluster, &plain.output);
    assert!(!found.is_empty() && found.iter().all(|codec| *codec == NONE), "{found:?}");
    println!("{REFERENCES} captions: {large} bytes plain, {small} bytes compressed");
    assert!(small < large, "{small} bytes compressed, {large} plain");
}
