//! The running stages: channels and threads, in the order of the flow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;
use crate::s3::Store;
use crate::worker::batch::Batcher;
use crate::worker::caption::Captioner;
use crate::worker::consume::Consume;
use crate::worker::consume::intake::Intake;
use crate::worker::consume::lag::Backlog;
use crate::worker::consume::rebalance::Rebalancer;
use crate::worker::context::Shared;
use crate::worker::deadlines::Deadlines;
use crate::worker::decode::{self, Decode};
use crate::worker::encode::Encode;
use crate::worker::fetch::Fetch;
use crate::worker::models::reload::Rollout;
use crate::worker::models::{self, Half, Model, Models};
use crate::worker::publish::Publisher;
use crate::worker::publish::event::Event;
use crate::worker::publish::records::{Encoders, RecordWriter};
use crate::worker::publish::transaction::Transactor;
use crate::worker::supervise::{spawn_thread, supervise};

/// For a publisher that was waited for before, or whose consumer panicked.
const LAST_WAIT: Duration = Duration::from_secs(1);

type Heard = tokio::sync::oneshot::Receiver<()>;
pub type Connected = (BaseConsumer<Rebalancer>, Transactor);

/// The running stages.
pub struct Stages {
    consume: Heard,
    publish: Heard,
    encode: Heard,
    caption: Heard,
    tasks: Vec<JoinHandle<()>>,
    publisher: Sender<Event>,
}

impl Stages {
    pub fn start(
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
        models::tell(&shared.metrics, &models.serving().identity, None);
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
    pub async fn join(self, shared: &Shared) {
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
