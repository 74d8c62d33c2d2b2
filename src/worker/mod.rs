//! The worker: image references in, captions out, exactly once.
//!
//! ```text
//! consume ─ fetch ─ decode ─ batch ─ encode ─ caption ─ publish
//!    └─────────────── rewind ◀─ exactly_once ◀─────────────┘
//! ```
//! `consume`, `encode`, `caption` and `publish` each own a part that blocks (the consumer, the two
//! halves of the engine, the producer) and run on threads; the others are tasks. Work moves forward
//! only, as an `item` whose state changes from stage to stage. One thing flows back: a failed
//! transaction makes the work in flight stale (`exactly_once`), and the consumer goes back to the
//! committed offsets.
//!
//! An offset is committed only in the transaction that carries every answer to its message, and only
//! by the owner of its partition. Everything else here may fail at any moment; it then costs repeated
//! work, never a lost or a doubled caption.

mod batch;
mod breaker;
mod caption;
mod coalesce;
mod consume;
mod context;
mod deadlines;
mod decode;
mod encode;
mod exactly_once;
mod fetch;
mod item;
mod models;
mod outbox;
mod outcome;
mod ownership;
mod publish;
mod run;
mod source_message;
mod stages;
mod supervise;
mod telemetry;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::bundle::source::Snapshot;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::error::kafka_error;
use crate::kafka::settings::Clients;
use crate::registry::{Kind, Registry};
use crate::s3::Store;
use crate::telemetry::{Health, Instruments};
use crate::worker::consume::awaiting_schema::AwaitingSchema;
use crate::worker::consume::rebalance::Rebalancer;
use crate::worker::consume::startup;
use crate::worker::context::Context;
use crate::worker::deadlines::Deadlines;
use crate::worker::models::reload::ModelReloader;
use crate::worker::models::{Model, Models};
use crate::worker::outbox::Outbox;
use crate::worker::publish::records::Encoders;
use crate::worker::run::Run;
use crate::worker::stages::{Connected, Parts, Stages};
use crate::worker::telemetry::Observer;

/// The model that a worker starts with.
pub struct InitialModel {
    pub engine: Engine,
    /// The source of the bundle, which is checked for changes. None for a bundle in a directory of
    /// the user.
    pub snapshot: Option<Snapshot>,
}

/// The result of one run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub messages: u64,
    pub captions: u64,
    pub dead_letters: u64,
    pub skipped: u64,
    pub transactions: u64,
    pub elapsed: Duration,
    /// Busy time of each stage, in the order of the flow, summed over its threads.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Runs until `shutdown` is cancelled (then drains) or something can't be recovered from. `store`
/// serves images and changed models.
///
/// # Errors
/// `ErrorKind::Config` for settings that a client refuses; `ErrorKind::Kafka` when no broker
/// answers, a topic is missing, or transactions fail for good; whatever the engine fails with.
pub async fn run(
    config: Config,
    InitialModel { engine, snapshot }: InitialModel,
    store: Store,
    instruments: Instruments,
    shutdown: CancellationToken,
) -> Result<Report> {
    let started = Instant::now();
    // Dropping this future ends the threads too.
    let stop = shutdown.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let Instruments { metrics, health, tracer, meter, .. } = instruments;
    let registry = Registry::new(&config.registry)?;
    let encoders = Encoders::resolve(&registry, &config.kafka).await?;
    let awaiting_schema = AwaitingSchema::new(registry.decoder(Kind::Request, Handle::current()));
    let clients = Clients::new(&config.kafka)?;
    let deadlines = Deadlines::new(&config, clients.timeouts)?;

    let batch_size = config.batch.size.clamp(1, engine.batch_size().max(1));
    let models = Arc::new(Models::new(Model::new(engine, config.decode.mode)?));
    models::announce(&metrics, &models.serving().identity, None);

    let (publisher, inbox) = std::sync::mpsc::channel();
    let context = Context {
        ownership: Arc::default(),
        run: Arc::new(Run::new(health)),
        observer: Arc::new(Observer::new(metrics, tracer, meter, &config.kafka)),
        outbox: Outbox::new(publisher.clone(), Arc::clone(&models)),
        breaker: Arc::default(),
    };
    let rebalancer = Rebalancer::new(
        &config.kafka,
        Arc::clone(&context.ownership),
        Arc::clone(&context.run),
        publisher.clone(),
        deadlines.poll_wait(),
    );
    let health = Arc::clone(&context.run.health);
    let Some(kafka) = connect(&config, clients, rebalancer, health, &stop).await? else {
        tracing::info!("stopped before kafka was connected to");
        return Ok(Report { elapsed: started.elapsed(), ..Report::default() });
    };
    context.run.health.set_not_ready("joining the consumer group");
    let reloader = snapshot.map(|snapshot| ModelReloader {
        config: config.clone(),
        snapshot,
        store: store.clone(),
        models: Arc::clone(&models),
        metrics: Arc::clone(&context.observer.metrics),
    });
    let parts = Parts {
        config,
        deadlines,
        store,
        models,
        batch_size,
        reloader,
        kafka,
        awaiting_schema,
        encoders,
        publisher,
        inbox,
        shutdown: stop,
    };
    Stages::start(parts, &context)?.join().await;
    if let Some(error) = context.run.take_failure() {
        return Err(error);
    }
    let tally = &context.observer.tally;
    let count = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed);
    let report = Report {
        messages: count(&tally.messages),
        captions: count(&tally.captions),
        dead_letters: count(&tally.dead_letters),
        skipped: count(&tally.skipped),
        transactions: count(&tally.transactions),
        elapsed: started.elapsed(),
        stages: tally.stages(),
    };
    tracing::info!(
        messages = report.messages,
        captions = report.captions,
        dead_letters = report.dead_letters,
        skipped = report.skipped,
        transactions = report.transactions,
        "the worker has stopped"
    );
    Ok(report)
}

/// Connects both Kafka clients; None where `stop` came first. A call that blocks then is abandoned.
async fn connect(
    config: &Config,
    clients: Clients,
    context: Rebalancer,
    health: Arc<Health>,
    stop: &CancellationToken,
) -> Result<Option<Connected>> {
    let (kafka, stopped) = (config.kafka.clone(), stop.clone());
    let connecting = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer<Rebalancer> = clients
            .consumer
            .create_with_context(context)
            .map_err(|error| kafka_error("no consumer can be created", error))?;
        if !startup::await_brokers(&consumer, &kafka, || stopped.is_cancelled())? {
            return Ok(None);
        }
        startup::check_topics(&consumer, &kafka)?;
        let producer = publish::connect_producer(&clients, &health, || stopped.is_cancelled())?;
        tracing::info!(
            brokers = kafka.brokers,
            group = kafka.group,
            transactional_id = clients.transactional_id,
            input_topic = kafka.input_topic,
            "connected to kafka"
        );
        Ok(Some(Connected { consumer, producer }))
    });
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        connected = connecting => connected.map_err(|error| {
            Error::new(ErrorKind::Internal, "connecting to kafka panicked").with_source(error)
        })?,
    }
}
