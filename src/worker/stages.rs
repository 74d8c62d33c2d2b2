//! The running stages: channels, threads and tasks, in the order of the pipeline.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use rdkafka::consumer::BaseConsumer;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Result;
use crate::kafka::transaction::TransactionalProducer;
use crate::s3::Store;
use crate::worker::batch::Batcher;
use crate::worker::caption::Captioner;
use crate::worker::consume::Consumer;
use crate::worker::consume::awaiting_schema::AwaitingSchema;
use crate::worker::consume::rebalance::Rebalancer;
use crate::worker::consume::receive;
use crate::worker::context::Context;
use crate::worker::deadlines::Deadlines;
use crate::worker::decode::{self, Decoder};
use crate::worker::encode::Encoder;
use crate::worker::fetch::Fetcher;
use crate::worker::models::Models;
use crate::worker::models::reload::ModelReloader;
use crate::worker::outbox::event::PublisherEvent;
use crate::worker::ownership::Ownership;
use crate::worker::publish::Publisher;
use crate::worker::publish::records::{Encoders, RecordWriter};
use crate::worker::supervise::{ThreadHandle, spawn_task, spawn_thread};

/// For a publisher that was waited for before, or whose consumer panicked.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Both Kafka clients, checked and ready.
pub struct Connected {
    pub consumer: BaseConsumer<Rebalancer>,
    pub producer: TransactionalProducer,
}

/// Everything that the stages are built from, beside what they share.
pub struct Parts {
    pub config: Config,
    pub deadlines: Deadlines,
    pub store: Store,
    pub models: Arc<Models>,
    /// Images in a batch.
    pub batch_size: usize,
    /// None where the bundle is not in S3.
    pub reloader: Option<ModelReloader>,
    pub kafka: Connected,
    pub awaiting_schema: AwaitingSchema,
    pub encoders: Encoders,
    pub publisher: Sender<PublisherEvent>,
    pub inbox: Receiver<PublisherEvent>,
    pub shutdown: CancellationToken,
}

pub struct Stages {
    consumer: ThreadHandle,
    publisher: ThreadHandle,
    encoder: ThreadHandle,
    captioner: ThreadHandle,
    tasks: Vec<JoinHandle<()>>,
    events: Sender<PublisherEvent>,
    ownership: Arc<Ownership>,
}

impl Stages {
    /// Starts the stages from the last to the first, so that each finds the one behind it running.
    pub fn start(parts: Parts, context: &Context) -> Result<Self> {
        let Parts { config, store, models, batch_size, kafka, shutdown, .. } = parts;
        let run = &context.run;
        let (to_fetch, referenced) = mpsc::unbounded_channel();
        let (to_decode, fetched) = mpsc::channel(decode::threads(&config.runtime));
        let (to_batch, decoded) = mpsc::channel(batch_size);
        let (to_encode, batches) = mpsc::channel(1);
        let (to_caption, encoded) = mpsc::channel(1);

        let writer = RecordWriter::new(&config, parts.encoders);
        let (inbox, stop) = (parts.inbox, shutdown.clone());
        let publisher = Publisher::new(&config, context, inbox, kafka.producer, writer, stop);
        let (publisher_ends, publisher_ended) = std::sync::mpsc::channel::<()>();
        let publisher = spawn_thread("publish", run, move || {
            let result = publisher.run();
            drop(publisher_ends);
            result
        })?;

        let captioner = Captioner::new(config.model.embeddings, context);
        let captioner = spawn_thread("caption", run, move || captioner.run(encoded))?;
        let encoder = Encoder::new(context, to_caption);
        let encoder = spawn_thread("encode", run, move || encoder.run(batches))?;

        let linger = Duration::from_millis(config.batch.linger_ms);
        let batcher = Batcher::new(batch_size, linger, context, to_encode);
        let decoder = Decoder::new(&config, context, Arc::clone(&models), to_batch);
        let fetcher = Fetcher::new(&config, context, store, models, to_decode);
        let mut tasks = vec![
            spawn_task("batch", run, batcher.run(decoded)),
            spawn_task("decode", run, decoder.run(fetched)),
            spawn_task("fetch", run, fetcher.run(referenced)),
        ];
        tasks.extend(parts.reloader.map(|reloader| spawn_task("reload", run, reloader.run())));

        let events = parts.publisher;
        let receiver =
            receive::MessageReceiver::new(context, events.clone(), parts.awaiting_schema, to_fetch);
        let mut consumer =
            Consumer::new(&config, context, kafka.consumer, receiver, parts.deadlines, shutdown);
        let (ownership, to_publisher) = (Arc::clone(&context.ownership), events.clone());
        let failing = Arc::clone(run);
        let consumer = spawn_thread("consume", run, move || {
            if let Err(error) = consumer.run() {
                // The publisher must not commit what a broken consumer may not own.
                ownership.suspend_all();
                failing.fail(error);
            }
            // It has ended already when it failed.
            let _ = to_publisher.send(PublisherEvent::Close);
            consumer.close(&publisher_ended);
            Ok(())
        })?;
        let ownership = Arc::clone(&context.ownership);
        Ok(Self { consumer, publisher, encoder, captioner, tasks, events, ownership })
    }

    /// Waits for the end of the consumer, then of the publisher, then of the stages between them.
    pub async fn join(self) {
        let _ = self.consumer.await;
        // The consumer has sent it already, unless it panicked.
        let _ = self.events.send(PublisherEvent::Close);
        // The consumer has waited for the publisher as long as there was time.
        if timeout(LAST_WAIT, self.publisher).await.is_err() {
            tracing::warn!("the publisher did not stop in time");
        }
        // The work that they still hold is stale.
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            let _ = task.await;
        }
        let _ = self.encoder.await;
        let _ = self.captioner.await;
        self.ownership.suspend_all();
    }
}
