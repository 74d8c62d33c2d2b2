//! Everything embedded: the first command a newcomer runs.
//!
//! Photos go into a bucket of an S3 server on loopback, references to them onto `images.in`, and
//! the worker runs as in production: the same `worker::run` with the same configuration type.
//! Only what surrounds it is embedded. When every photo has its answer the worker is shut down,
//! and a second reader goes through the output topics from their beginning: what it finds is
//! what the report counts, so an answer that came twice shows.

mod files;
pub mod html;
pub mod kafka;
pub mod photos;
pub mod report;
pub mod s3;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::config::{Batch, Config, Decode, Http, Limits, Model, Registry, Runtime};
use crate::demo::kafka::{Answer, DemoKafka};
use crate::demo::photos::Photo;
use crate::demo::report::DemoReport;
use crate::demo::s3::{Credentials, EmbeddedS3};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Progress, announce};
use crate::s3::Store;
use crate::telemetry::{Health, Instruments, Metrics};
use crate::worker::{self, InitialModel};

/// Longest wait for the worker to join its group.
const START: Duration = Duration::from_secs(60);
/// Longest wait for the next answer; after it, what did not come back is missing.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest wait for the second reading of the output topics.
const RECOUNT: Duration = Duration::from_secs(60);
/// Most photos on the embedded Kafka, which forgets what exceeds 5 MiB a partition.
const MOST_EMBEDDED: usize = 10_000;

/// What to caption, with what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Files and folders.
    pub paths: Vec<PathBuf>,
    /// Bootstrap servers of a real Kafka; embedded without.
    pub brokers: Option<String>,
    /// Directory of the bundle.
    pub model: PathBuf,
    /// Images a batch.
    pub batch_size: usize,
}

/// Captions the photos at `settings.paths` and counts what came back.
///
/// # Errors
/// If a part can't be started or the worker fails. A photo that is not captioned is no error:
/// the report says so.
pub async fn run(settings: &Settings) -> Result<DemoReport> {
    let photos = photos::find(&settings.paths)?;
    if settings.brokers.is_none() && photos.len() > MOST_EMBEDDED {
        return Err(Error::new(
            ErrorKind::Config,
            "too many photos for the embedded kafka; use a real one with --brokers",
        )
        .with("value", photos.len())
        .with("allowed", MOST_EMBEDDED));
    }
    announce(&format!("loading the model {}", settings.model.display()));
    let bundle = Bundle::open(&settings.model)?;
    let model = format!("{} {}", bundle.config.name, bundle.config.version);
    let digest = bundle.digest().to_owned();
    let engine = load(bundle, settings).await?;

    let folder = tempfile::tempdir().map_err(|error| {
        Error::new(ErrorKind::Io, "can't make a temporary folder").because(error)
    })?;
    let store = EmbeddedS3::start(folder.path(), Credentials::random())?;
    announce(&format!("uploading {} photos to s3 at {}", photos.len(), store.endpoint()));
    photos::upload(&photos, &store).await?;

    // Eight hexadecimal digits tell the runs on one Kafka apart.
    let run = uuid::Uuid::new_v4().simple().to_string().split_off(24);
    let kafka = DemoKafka::start(settings.brokers.as_deref(), &run).await?;
    let captioned = caption(&photos, &kafka, &store, engine, settings).await;
    kafka.remove().await;
    let Captioned { answers, elapsed, stages } = captioned?;
    let (sorted, strangers) = DemoReport::sort(photos, answers);
    Ok(DemoReport { model, digest, photos: sorted, strangers, elapsed, stages })
}

async fn load(bundle: Bundle, settings: &Settings) -> Result<Engine> {
    let model = model(settings);
    let batch_size = settings.batch_size;
    tokio::task::spawn_blocking(move || {
        Engine::load(bundle, &Runtime::default(), &model, batch_size)
    })
    .await
    .map_err(|error| Error::new(ErrorKind::Internal, "loading panicked").because(error))?
}

/// What the worker did, as its surroundings saw it.
struct Captioned {
    answers: Vec<Answer>,
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
    let place = if kafka.is_embedded() { "embedded kafka" } else { "kafka" };
    announce(&format!("starting the worker on the {place} at {}", kafka.brokers()));
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

    let followed = tokio::select! {
        elapsed = follow(photos, kafka, &health) => elapsed,
        () = ended.cancelled() => Err(Error::new(ErrorKind::Internal, "the worker ended early")),
        _ = tokio::signal::ctrl_c() => Err(Error::new(ErrorKind::Internal, "interrupted")),
    };
    shutdown.cancel();
    let worked = worker
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "the worker panicked").because(error))?;
    // The worker's own error first: it is what made the follower give up.
    let report = worked?;
    let elapsed = followed?;
    announce("counting what came back");
    Ok(Captioned { answers: recount(kafka).await?, elapsed, stages: report.stages })
}

/// Sends the references and waits for the answers; returns how long that took.
async fn follow(photos: &[Photo], kafka: &DemoKafka, health: &Health) -> Result<Duration> {
    let references: Vec<_> =
        photos.iter().map(|photo| (photo.id.clone(), photo.reference())).collect();
    let mut waiting: HashSet<_> = photos.iter().map(|photo| photo.id.as_str()).collect();
    let producer = kafka.references()?;
    let mut answers = kafka.answers()?;
    ready(health).await?;

    let progress = Progress::new("captioning", "images", photos.len() as u64);
    let started = Instant::now();
    producer.send(&references).await?;
    while !waiting.is_empty() {
        let Ok(answer) = tokio::time::timeout(ANSWER, answers.next()).await else {
            tracing::warn!(missing = waiting.len(), "no answer for a long time; giving up");
            break;
        };
        if waiting.remove(answer?.id.as_str()) {
            progress.advance(1);
        }
    }
    Ok(started.elapsed())
}

async fn ready(health: &Health) -> Result<()> {
    let joined = async {
        while !health.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(START, joined).await.map_err(|_| {
        Error::new(ErrorKind::Kafka, "the worker did not join its group")
            .with("seconds", START.as_secs())
    })
}

async fn recount(kafka: &DemoKafka) -> Result<Vec<Answer>> {
    let Ok(answers) = tokio::time::timeout(RECOUNT, kafka.answers()?.rest()).await else {
        return Err(Error::new(ErrorKind::Kafka, "the output topics could not be read again")
            .with("seconds", RECOUNT.as_secs()));
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
        // Any free port: nobody asks.
        http: Http { listen: ([127, 0, 0, 1], 0).into() },
        registry: Registry::default(),
    }
}
