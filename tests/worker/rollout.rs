//! The bundle in S3 is changed under a working worker: for another model, for a broken one, and
//! back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fusioncap::bundle::Bundle;
use fusioncap::config::{DecodeMode, Limits, Model, Runtime};
use fusioncap::engine::Engine;
use kit::bucket::{Bucket, picture, uri};
use kit::kafka::{Record, Topics, deliver};
use kit::process::{Configuration, Worker};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::FutureProducer;
use serde_json::json;

use crate::{Expected, assert_exactly_once, shared_cluster};

const PICTURES: u32 = 8;
const PREFIX: &str = "models/current";
const PATIENCE: Duration = Duration::from_secs(120);

fn folder(model: &str) -> PathBuf {
    kit::root("models").join(model)
}

/// The captions of one model, one for each picture.
struct Known {
    digest: String,
    captions: Vec<String>,
}

impl Known {
    fn of(model: &str) -> Self {
        let bundle = Bundle::open(&folder(model)).unwrap();
        let digest = bundle.digest().to_owned();
        let mut engine = Engine::load(bundle, &Runtime::default(), &Model::default(), 8).unwrap();
        let preprocessor = engine.preprocessor().clone().in_mode(DecodeMode::Fast);
        let decode =
            |number| preprocessor.decode(&picture(number), &Limits::default()).unwrap().rgb;
        let images: Vec<Vec<u8>> = (0..PICTURES).map(decode).collect();
        let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let captions = engine.caption(&images).unwrap();
        Self { digest, captions: captions.into_iter().map(|caption| caption.text).collect() }
    }
}

/// Puts a bundle under the prefix, its manifest last.
fn upload(bucket: &Bucket, model: &str) {
    let dir = folder(model);
    let manifest = Bundle::open(&dir).unwrap().manifest().unwrap();
    for name in manifest.files.keys().map(String::as_str).chain(["manifest.json"]) {
        bucket.put(&format!("{PREFIX}/{name}"), &std::fs::read(dir.join(name)).unwrap());
    }
}

/// Refers to the pictures round and round until it is told to stop.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: tokio::task::JoinHandle<HashMap<(i32, i64), Expected>>,
}

impl Stream {
    fn start(producer: FutureProducer, topics: &Topics) -> Self {
        let (stop, input) = (Arc::new(AtomicBool::new(false)), topics.input.clone());
        let stopped = Arc::clone(&stop);
        let sent = tokio::spawn(async move {
            let mut expected = HashMap::new();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let picture = format!("{}.png", number % PICTURES);
                let reference = json!({"uri": uri(&picture)}).to_string();
                let partition = (number % 2) as i32;
                let headers = OwnedHeaders::new();
                let offset =
                    deliver(&producer, &input, partition, "k", reference.as_bytes(), headers).await;
                expected.insert((partition, offset), Expected::Caption);
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            expected
        });
        Self { stop, sent }
    }

    async fn end(self) -> HashMap<(i32, i64), Expected> {
        self.stop.store(true, Ordering::Relaxed);
        self.sent.await.unwrap()
    }
}

/// Waits for so many captions more.
async fn work(worker: &mut Worker, more: f64) {
    let captions = |worker: &Worker| worker.metric("fusioncap_captions_total");
    let (before, deadline) = (captions(worker), Instant::now() + PATIENCE);
    while captions(worker) < before + more {
        assert!(worker.is_running() && Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn in_use(worker: &Worker, model: &Known) -> f64 {
    let metrics = worker.get("/metrics").unwrap();
    let labels = format!("fusioncap_model_info{{digest=\"{}\"", model.digest);
    let line = metrics.lines().find(|line| line.starts_with(&labels));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// The folders of fetched bundles.
fn fetched(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_bundle_takes_over_and_a_broken_one_does_not() {
    let (first, second) = (Known::of("random"), Known::of("tiny"));
    assert_ne!(first.captions, second.captions);
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let (topics, kept) = (cluster.topics(2).await, tempfile::tempdir().unwrap());
    for number in 0..PICTURES {
        bucket.put(&format!("{number}.png"), &picture(number));
    }
    upload(&bucket, "random");
    let path = folder("random").display().to_string();
    let source = format!("s3://photos/{PREFIX}\n  reload_interval_ms: 3000");
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing(&path, &source)
        .replacing("max_in_flight: 128", "max_in_flight: 64")
        .with_variable("FUSIONCAP_MODEL_DIR", kept.path().to_str().unwrap())
        .start();
    let stream = Stream::start(cluster.producer(), &topics);
    work(&mut worker, 60.0).await;
    assert_eq!(in_use(&worker, &first), 1.0);

    upload(&bucket, "tiny");
    worker.await_log("model in use", 2);
    // The new model captions every reference from now on, also within the window of coalescing.
    let turned = [0, 1].map(|partition| cluster.stored_in(&topics.input, partition));
    work(&mut worker, 60.0).await;
    assert_eq!((in_use(&worker, &first), in_use(&worker, &second)), (0.0, 1.0));

    let mut broken = std::fs::read(folder("tiny").join("onnx/decoder.onnx")).unwrap();
    broken.truncate(broken.len() / 2);
    bucket.put(&format!("{PREFIX}/onnx/decoder.onnx"), &broken);
    worker.await_log("the changed bundle can't be used", 1);
    assert!(worker.log().contains("a file of the bundle is damaged"), "{}", worker.log());
    let refused = [0, 1].map(|partition| cluster.stored_in(&topics.input, partition));
    work(&mut worker, 60.0).await;
    assert_eq!(worker.metric("fusioncap_model_reload_failed"), 1.0);
    assert_eq!(in_use(&worker, &second), 1.0);

    upload(&bucket, "random");
    worker.await_log("model in use", 3);
    let back = [0, 1].map(|partition| cluster.stored_in(&topics.input, partition));
    work(&mut worker, 60.0).await;
    assert_eq!(worker.metric("fusioncap_model_reload_failed"), 0.0);
    assert_eq!((in_use(&worker, &first), in_use(&worker, &second)), (1.0, 0.0));
    assert_eq!(fetched(kept.path()), 1, "only the model in use is kept");

    // The same bundle again is not a change.
    upload(&bucket, "random");
    worker.await_log("fetching the model", 5);
    work(&mut worker, 60.0).await;
    assert_eq!(worker.log().matches("model in use").count(), 3);

    let expected = stream.end().await;
    let records = cluster.await_records(&[&topics.output], expected.len(), PATIENCE);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    assert_eq!(fetched(kept.path()), 0, "nothing is left behind");
    let all = cluster.read_committed(&[&topics.output, &topics.dead_letters]);
    assert_exactly_once(&all, &expected);

    for record in &records {
        let digest = record.text("model_digest");
        assert_eq!(record.header("fusioncap-model-digest"), digest);
        let model = if digest == first.digest { &first } else { &second };
        assert_eq!(digest, model.digest);
        assert_eq!(record.text("caption"), model.captions[number(record)], "{record:?}");
        let (partition, offset) = record.source();
        let [turned, refused, back] = [turned, refused, back].map(|at| at[partition as usize]);
        if offset >= back {
            assert_eq!(digest, first.digest, "{record:?}");
        } else if (turned..refused).contains(&offset) {
            assert_eq!(digest, second.digest, "{record:?}");
        }
    }
}

/// The number of the captioned picture.
fn number(record: &Record) -> usize {
    let key = record.text("key");
    key.strip_suffix(".png").and_then(|number| number.parse().ok()).unwrap()
}
