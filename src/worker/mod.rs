//! The worker: image references in, captions out, exactly once.
//!
//! ```text
//! consume ─ fetch ─ decode ─ batch ─ encode ─ caption ─ publish
//!    └──────────────── rewind ◀─ assignment ◀──────────────┘
//! ```
//! `consume`, `encode`, `caption` and `publish` each own something that blocks (the consumer, the
//! engine's two halves, the producer) and run on threads; the others are tasks. Work moves forward
//! only, through channels, as the types of `flow`. What flows back is one thing: a failed
//! transaction makes the work in flight stale in `assignment`, and the consumer goes back to the
//! committed offsets.
//!
//! The one thing to know: an offset is committed only in the transaction that carries everything
//! its message led to (`ledger`, `publish`), and only by whoever owns its partition (`assignment`,
//! `rebalance`, `membership`). Everything else here may fail at any moment and costs repeated
//! work, never a lost or a doubled caption.

mod assignment;
mod backlog;
mod batch;
mod breaker;
mod caption;
pub(crate) mod client;
mod client_log;
mod consume;
mod conventional;
mod deadlines;
mod decode;
mod depth;
mod encode;
mod fencing;
mod fetch;
mod flow;
pub mod headers;
mod hedge;
mod intake;
mod lead;
mod ledger;
mod membership;
pub mod message;
mod models;
mod output;
pub mod producer;
mod protocol;
mod publish;
mod rebalance;
mod repeats;
mod rollout;
mod shared;
#[cfg(test)]
mod simulation;
mod spans;
mod transaction;
mod watchdog;

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use futures::FutureExt;
use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{Kind, Registry};
use crate::s3::Store;
use crate::telemetry::{Health, Instruments};
use crate::worker::backlog::Backlog;
use crate::worker::batch::Batcher;
use crate::worker::caption::Captioner;
use crate::worker::client::Clients;
use crate::worker::consume::Consume;
use crate::worker::deadlines::Deadlines;
use crate::worker::decode::Decode;
use crate::worker::encode::Encode;
use crate::worker::fetch::Fetch;
use crate::worker::flow::Event;
use crate::worker::intake::Intake;
use crate::worker::models::{Half, Model, Models};
use crate::worker::output::{Encoders, RecordWriter};
use crate::worker::publish::Publisher;
use crate::worker::rebalance::Rebalancer;
use crate::worker::rollout::Rollout;
use crate::worker::shared::{Shared, panicked, spawn_thread};
use crate::worker::transaction::Transactor;

/// For a publisher that was waited for before, or whose consumer panicked.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What one run of the worker did.
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

/// Runs until `shutdown` is cancelled (then drains) or something can't be recovered from.
///
/// # Errors
/// `ErrorKind::Config` for settings that a client refuses; `ErrorKind::Kafka` when no broker
/// answers, a topic is missing, or transactions fail for good; whatever the engine fails with.
pub async fn run(
    config: Config,
    engine: Engine,
    instruments: Instruments,
    shutdown: CancellationToken,
) -> Result<Report> {
    let started = Instant::now();
    // Dropping this future ends the threads too.
    let stop = shutdown.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let shared = Arc::new(Shared::new(instruments, &config.kafka));
    let store = Store::connect(&config.s3).await?;
    let registry = Registry::new(&config.registry)?;
    let encoders = Encoders::settle(&registry, &config.kafka).await?;
    let intake = Intake::new(registry.decoder(Kind::Request, Handle::current()));
    let (publisher, inbox) = std::sync::mpsc::channel();
    let clients = Clients::new(&config.kafka)?;
    let deadlines = Deadlines::new(&config, clients.timeouts)?;
    let context = Rebalancer::new(
        config.kafka.input_topic.as_str().into(),
        Arc::clone(&shared),
        publisher.clone(),
        deadlines.poll_wait(),
    );
    let Some(clients) =
        connect(&config, clients, context, Arc::clone(&shared.health), &stop).await?
    else {
        tracing::info!("stopped before kafka was connected to");
        return Ok(Report { elapsed: started.elapsed(), ..Report::default() });
    };
    shared.health.set_not_ready("joining the consumer group");
    let stages = Stages::start(
        (config, deadlines),
        engine,
        store,
        (clients, intake, encoders),
        (publisher, inbox),
        &shared,
        stop,
    )?;
    stages.join(&shared).await;
    if let Some(error) = shared.take_failure() {
        return Err(error);
    }
    let count = |total: &std::sync::atomic::AtomicU64| total.load(Ordering::Relaxed);
    let report = Report {
        messages: count(&shared.tally.messages),
        captions: count(&shared.tally.captions),
        dead_letters: count(&shared.tally.dead_letters),
        skipped: count(&shared.tally.skipped),
        transactions: count(&shared.tally.transactions),
        elapsed: started.elapsed(),
        stages: shared.tally.stages(),
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

/// Both Kafka clients, checked and ready; None where `stop` came first. What blocks then is left
/// behind.
async fn connect(
    config: &Config,
    clients: Clients,
    context: Rebalancer,
    health: Arc<Health>,
    stop: &CancellationToken,
) -> Result<Option<Connected>> {
    let (kafka, stopped) = (config.kafka.clone(), stop.clone());
    let connecting = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer<Rebalancer> =
            clients.consumer.create_with_context(context).map_err(client::creation_error)?;
        if !client::await_brokers(&consumer, &kafka, || stopped.is_cancelled())? {
            return Ok(None);
        }
        client::check_topics(&consumer, &kafka)?;
        let transactor = Transactor::connect(&clients, &health, || stopped.is_cancelled())?;
        tracing::info!(
            brokers = kafka.brokers,
            group = kafka.group,
            transactional_id = clients.transactional_id,
            input_topic = kafka.input_topic,
            "connected to kafka"
        );
        Ok(Some((consumer, transactor)))
    });
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        connected = connecting => connected.map_err(|error| {
            Error::new(ErrorKind::Internal, "connecting to kafka panicked").because(error)
        })?,
    }
}

type Heard = tokio::sync::oneshot::Receiver<()>;
type Connected = (BaseConsumer<Rebalancer>, Transactor);

/// The running stages.
struct Stages {
    consume: Heard,
    publish: Heard,
    encode: Heard,
    caption: Heard,
    tasks: Vec<JoinHandle<()>>,
    publisher: Sender<Event>,
}

impl Stages {
    fn start(
        (config, deadlines): (Config, Deadlines),
        engine: Engine,
        store: Store,
        ((consumer, transactor), intake, encoders): (Connected, Intake, Encoders),
        (publisher, inbox): (Sender<Event>, Receiver<Event>),
        shared: &Arc<Shared>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let share = || Arc::clone(shared);
        let topic: Arc<str> = config.kafka.input_topic.as_str().into();
        let decode_threads = decode::threads(&config.runtime);
        let batch_size = config.batch.size.clamp(1, engine.batch_size().max(1));
        let source = engine.bundle().source();
        let source = source.map(|(source, state)| (source.clone(), state.clone()));
        let models = Arc::new(Models::new(Model::new(engine, config.decode.mode)?));
        rollout::tell(&shared.metrics, &models.serving().identity, None);
        // References are small: all that may be in flight can wait here. Images are not.
        let (to_fetch, fetched) = mpsc::channel(config.limits.max_in_flight.max(1));
        let (to_decode, decoded) = mpsc::channel(decode_threads);
        let (to_batch, batched) = mpsc::channel(batch_size);
        let (to_encode, encoded) = mpsc::channel(1);
        let (to_caption, captioned) = mpsc::channel(1);
        let (publish_ends, publish_ended) = std::sync::mpsc::channel::<()>();

        let records = RecordWriter::new(&config, Arc::clone(&models), encoders);
        let publish = Publisher::new(&config, inbox, share(), transactor, records, stop.clone());
        let publish = spawn_thread("publish", shared, move || {
            let outcome = publish.run();
            drop(publish_ends);
            outcome
        })?;

        let decode = Decode {
            models: Arc::clone(&models),
            limits: config.limits,
            threads: decode_threads,
            shared: share(),
            publisher: publisher.clone(),
            batch: to_batch,
        };
        let batcher = Batcher {
            size: batch_size,
            linger: Duration::from_millis(config.batch.linger_ms),
            shared: share(),
            encode: to_encode,
        };
        let fetch = {
            let (store, models) = (store.clone(), Arc::clone(&models));
            Fetch::new(&config, store, share(), models, publisher.clone(), to_decode)
        };
        let mut tasks = vec![
            supervise("fetch", share(), fetch.run(fetched)),
            supervise("decode", share(), decode.run(decoded)),
            supervise("batch", share(), batcher.run(batched)),
        ];
        if let Some((source, seen)) = source {
            let (config, metrics) = (config.clone(), Arc::clone(&shared.metrics));
            let rollout = Rollout { config, source, seen, store, models, metrics };
            tasks.push(supervise("rollout", share(), rollout.run()));
        }
        let encoder = Half::new(Model::take_encoder);
        let encode = Encode { encoder, shared: share(), caption: to_caption };
        let encode = spawn_thread("encode", shared, move || encode.run(encoded))?;
        let writer = Half::new(Model::take_writer);
        let captioner = Captioner { writer, shared: share(), publisher: publisher.clone() };
        let caption = spawn_thread("caption", shared, move || captioner.run(captioned))?;

        let mut consume = Consume {
            consumer,
            topic,
            instance: config.kafka.group_instance_id.clone(),
            shared: share(),
            publisher: publisher.clone(),
            fetch: to_fetch,
            max_in_flight: config.limits.max_in_flight.max(1),
            deadlines,
            shutdown: stop,
            intake,
            unhanded: VecDeque::new(),
            backlog: Backlog::new(&config.kafka),
            membership: None,
            last_poll: Instant::now(),
            ending_since: None,
        };
        let consume = spawn_thread("consume", shared, move || {
            if let Err(error) = consume.run() {
                // The publisher must not commit what a broken consumer may not own.
                consume.shared.assignment.suspend_all();
                consume.shared.fail(error);
            }
            // It has ended already when it failed.
            let _ = consume.publisher.send(Event::Close);
            consume.close(&publish_ended);
            Ok(())
        })?;
        Ok(Self { consume, publish, encode, caption, tasks, publisher })
    }

    /// Waits for the end: of the consumer, then of the publisher, then of what lies between.
    async fn join(self, shared: &Shared) {
        let _ = self.consume.await;
        // The consumer has said so already, unless it panicked.
        let _ = self.publisher.send(Event::Close);
        // The consumer has waited for it as long as there was time.
        if timeout(LAST_WAIT, self.publish).await.is_err() {
            tracing::warn!("the publisher is left behind");
        }
        // Whatever they still hold is stale.
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            let _ = task.await;
        }
        let _ = self.encode.await;
        let _ = self.caption.await;
        shared.assignment.suspend_all();
    }
}

/// Runs a stage as a task; a panic ends the run.
fn supervise(
    name: &'static str,
    shared: Arc<Shared>,
    stage: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if AssertUnwindSafe(stage).catch_unwind().await.is_err() {
            shared.fail(panicked(name));
        }
    })
}
