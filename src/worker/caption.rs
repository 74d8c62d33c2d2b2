//! Encoded batches to captions, on the thread that owns the decoder.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::engine::{Caption, CaptionDecoder};
use crate::error::{Error, ErrorKind, Result};
use crate::worker::context::Context;
use crate::worker::encode::EncodedBatch;
use crate::worker::item::Decoded;
use crate::worker::models::{EngineSlot, Model};
use crate::worker::outbox::Outbox;
use crate::worker::outcome::{CaptionResult, Captioned};
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::spans::BatchTimes;
use crate::worker::telemetry::stage::{Stage, WaitFor};

pub struct Captioner {
    engine: EngineSlot<CaptionDecoder>,
    /// Whether captions carry the image's embedding.
    embeddings: bool,
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    outbox: Outbox,
}

impl Captioner {
    pub fn new(embeddings: bool, context: &Context) -> Self {
        let Context { ownership, run, observer, outbox, .. } = context.clone();
        let engine = EngineSlot::new(Model::take_decoder);
        Self { engine, embeddings, ownership, run, observer, outbox }
    }

    /// Runs until its input ends; blocks its thread.
    pub fn run(mut self, mut input: mpsc::Receiver<EncodedBatch>) -> Result<()> {
        loop {
            let idle = Instant::now();
            let Some(batch) = input.blocking_recv() else {
                return Ok(());
            };
            self.observer.waited(Stage::Caption, WaitFor::Upstream, idle);
            if self.run.has_failed() {
                return Ok(());
            }
            // A batch that is stale in part is captioned whole; the publisher drops that part.
            if batch.items.iter().any(|item| item.origin().is_current(&self.ownership)) {
                self.caption(batch)?;
            }
        }
    }

    fn caption(&mut self, batch: EncodedBatch) -> Result<()> {
        let started = Instant::now();
        let EncodedBatch { items, model, encoded, began, ended } = batch;
        let captions = self.engine.of(&model)?.generate(encoded)?;
        self.observer.busy(Stage::Caption, started);
        self.observer.max_durations.batch(began.elapsed());
        if captions.len() != items.len() {
            return Err(Error::new(ErrorKind::Internal, "a batch came back in another size")
                .with_context("images", items.len())
                .with_context("captions", captions.len()));
        }
        let times = BatchTimes { began, encoded: ended, writing: started, written: Instant::now() };
        self.observer.spans.inferred(items.iter().map(|item| &item.origin().trace), times);
        tracing::debug!(images = items.len(), elapsed = ?began.elapsed(), "batch captioned");
        let pairs = items.into_iter().zip(captions);
        self.outbox.finish_batch(pairs.map(|(item, caption)| {
            let (item, decoded) = item.split();
            (item, self.result(decoded, caption))
        }));
        Ok(())
    }

    fn result(
        &self,
        Decoded { object, pixels, model }: Decoded,
        caption: Caption,
    ) -> CaptionResult {
        Ok(Arc::new(Captioned {
            object,
            content_type: pixels.content_type,
            width: pixels.source_width,
            height: pixels.source_height,
            text: caption.text,
            score: caption.score,
            embedding: self.embeddings.then_some(caption.embedding),
            model: Arc::clone(&model.identity),
        }))
    }
}
