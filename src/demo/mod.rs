//! `fusioncap demo`: Kafka, S3 and the worker in one process, and a report.
//!
//! An S3 server on loopback serves the photos, and a producer sends references to them to
//! `images.in`. The worker runs as in production: the same `worker::run` with the same
//! configuration type. Only Kafka and S3 are embedded. When every photo has an answer, the worker
//! is shut down, and a second consumer reads the output topics from the beginning. The report
//! counts what that consumer finds, so it shows an answer that came twice.

pub mod html;
pub mod kafka;
pub mod photos;
pub mod report;
pub mod s3;
mod topics;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::config::{Batch, Config, Decode, Http, Limits, Model, Registry, Runtime};
use crate::demo::kafka::{DemoKafka, OutputRecord};
use crate::demo::photos::Photo;
use crate::demo::report::DemoReport;
use crate::demo::s3::EmbeddedS3;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Progress, announce};
use crate::s3::Store;
use crate::telemetry::{Health, Instruments, Metrics};
use crate::worker::{self, InitialModel};

/// Longest wait for the worker to join its consumer group.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the next answer. After it, the photos without an answer count as missing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for the second reading of the output topics.
const RECOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// Most photos on the embedded Kafka, which keeps 5 MiB a partition and drops the rest.
const MAX_EMBEDDED_PHOTOS: usize = 10_000;

/// The arguments of one run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Files and folders.
    pub paths: Vec<PathBuf>,
    /// Bootstrap servers of a real Kafka; without them, Kafka is embedded.
    pub brokers: Option<String>,
    /// Directory of the bundle.
    pub model: PathBuf,
    /// Images a batch.
    pub batch_size: usize,
}

/// Captions the photos at `settings.paths` and counts the answers.
///
/// # Errors
/// If Kafka, S3 or the worker can't be started, or the worker fails. A photo without a caption is
/// not an error; the report shows it.
pub async fn run(settings: &Settings) -> Result<DemoReport> {
    let photos = photos::find(&settings.paths)?;
    if settings.brokers.is_none() && photos.len() > MAX_EMBEDDED_PHOTOS {
        return Err(Error::new(
            ErrorKind::Config,
            "too many photos for the embedded Kafka; name a real one with --brokers",
        )
        .with_context("value", photos.len())
        .with_context("allowed", MAX_EMBEDDED_PHOTOS));
    }
    announce(&format!("loading the model {}", settings.model.display()));
    let bundle = Bundle::open(&settings.model)?;
    let model = format!("{} {}", bundle.config.name, bundle.config.version);
    let digest = bundle.digest().to_owned();
    let engine = load(bundle, settings).await?;

    let files = photos.iter().map(|photo| (photo.id.clone(), photo.path.clone())).collect();
    let store = EmbeddedS3::start(files).await?;
    announce(&format!("serving {} photos from S3 at {}", photos.len(), store.endpoint()));

    // Eight hexadecimal digits distinguish the runs on one Kafka.
    let run = uuid::Uuid::new_v4().simple().to_string().split_off(24);
    let kafka = DemoKafka::start(settings.brokers.as_deref(), &run).await?;
    let captioned = caption(&photos, &kafka, &store, engine, settings).await;
    kafka.delete_topics().await;
    let Captioned { answers, elapsed, stages } = captioned?;
    let (photos, unexpected) = report::group_by_photo(photos, answers);
    Ok(DemoReport { model, digest, photos, unexpected, elapsed, stages })
}

async fn load(bundle: Bundle, settings: &Settings) -> Result<Engine> {
    let model = model(settings);
    let batch_size = settings.batch_size;
    tokio::task::spawn_blocking(move || {
        Engine::load(bundle, &Runtime::default(), &model, batch_size)
    })
    .await
    .map_err(|error| {
        Error::new(ErrorKind::Internal, "loading the model panicked").with_source(error)
    })?
}

/// The outcome of the worker's run.
struct Captioned {
    answers: Vec<OutputRecord>,
    elapsed: Duration,
    stages: Vec<(&'static str, Duration)>,
}

async fn caption(
    photos: &[Photo],
    kafka: &DemoKafka,
    store: &EmbeddedS3,
    engine: Engine,
    settings: &Settings,
) -> Result<Captioned> {
    let kind = if kafka.is_embedded() { "the embedded Kafka" } else { "Kafka" };
    announce(&format!("starting the worker on {kind} at {}", kafka.brokers()));
    let health = Arc::new(Health::default());
    let metrics = Arc::new(Metrics::new(&opentelemetry::global::meter("fusioncap")));
    let shutdown = CancellationToken::new();
    let ended = CancellationToken::new();
    let ending = ended.clone().drop_guard();
    let config = config(settings, kafka, store);
    let client = Store::connect(&config.s3).await?;
    let work = worker::run(
        config,
        InitialModel { engine, snapshot: None },
        client,
        Instruments { metrics, health: Arc::clone(&health), tracer: None, meter: None },
        shutdown.clone(),
    );
    let worker = tokio::spawn(async move {
        let _ending = ending;
        work.await
    });

    let waited = tokio::select! {
        elapsed = send_and_wait(photos, kafka, &health) => elapsed,
        () = ended.cancelled() => Err(Error::new(ErrorKind::Internal, "the worker stopped early")),
        _ = tokio::signal::ctrl_c() => Err(Error::new(ErrorKind::Internal, "interrupted")),
    };
    shutdown.cancel();
    let worked = worker.await.map_err(|error| {
        Error::new(ErrorKind::Internal, "the worker panicked").with_source(error)
    })?;
    // The worker's own error first: it is the cause of the other.
    let report = worked?;
    let elapsed = waited?;
    announce("counting the answers");
    Ok(Captioned { answers: recount(kafka).await?, elapsed, stages: report.stages })
}

/// Sends the references, waits for the answers, and returns the time that both took.
async fn send_and_wait(photos: &[Photo], kafka: &DemoKafka, health: &Health) -> Result<Duration> {
    let references: Vec<_> =
        photos.iter().map(|photo| (photo.id.clone(), photo.reference())).collect();
    let mut waiting: HashSet<_> = photos.iter().map(|photo| photo.id.as_str()).collect();
    let producer = kafka.reference_producer()?;
    let mut answers = kafka.answer_reader()?;
    wait_until_ready(health).await?;

    let progress = Progress::new("captioning", "images", photos.len() as u64);
    let started = Instant::now();
    producer.send(&references).await?;
    while !waiting.is_empty() {
        let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, answers.next()).await else {
            tracing::warn!(
                missing = waiting.len(),
                "no answer for two minutes; the demo stops waiting"
            );
            break;
        };
        if waiting.remove(answer?.id.as_str()) {
            progress.advance(1);
        }
    }
    Ok(started.elapsed())
}

async fn wait_until_ready(health: &Health) -> Result<()> {
    let joined = async {
        while !health.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(JOIN_TIMEOUT, joined).await.map_err(|_| {
        Error::new(ErrorKind::Kafka, "the worker did not join its consumer group")
            .with_context("seconds", JOIN_TIMEOUT.as_secs())
    })
}

async fn recount(kafka: &DemoKafka) -> Result<Vec<OutputRecord>> {
    let Ok(answers) = tokio::time::timeout(RECOUNT_TIMEOUT, kafka.read_answers()).await else {
        return Err(Error::new(ErrorKind::Kafka, "the output topics can't be read a second time")
            .with_context("seconds", RECOUNT_TIMEOUT.as_secs()));
    };
    answers
}

fn model(settings: &Settings) -> Model {
    Model { path: settings.model.display().to_string(), ..Model::default() }
}

fn config(settings: &Settings, kafka: &DemoKafka, store: &EmbeddedS3) -> Config {
    Config {
        kafka: kafka.worker_config(),
        s3: store.client_config(),
        model: model(settings),
        decode: Decode::default(),
        batch: Batch { size: settings.batch_size, ..Batch::default() },
        runtime: Runtime::default(),
        limits: Limits::default(),
        // Any free port: no client uses it.
        http: Http { listen: ([127, 0, 0, 1], 0).into() },
        registry: Registry::default(),
    }
}
