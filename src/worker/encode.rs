//! Batches to the decoder's prefixes, on the thread that owns the vision tower. While one batch is
//! captioned the next one is encoded here.
//!
//! An error of the engine is never one image's fault: it ends the worker, and its successor reads
//! again what was not committed.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::engine::{self, Encoded};
use crate::error::Result;
use crate::worker::batch::Batch;
use crate::worker::context::Context;
use crate::worker::item::{Decoded, Item};
use crate::worker::models::{EngineSlot, Model};
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::stage::{Stage, WaitFor};

/// A batch on its way to the decoder.
pub struct EncodedBatch {
    pub items: Vec<Item<Decoded>>,
    pub model: Arc<Model>,
    pub encoded: Encoded,
    /// When encoding began.
    pub began: Instant,
    /// When encoding ended.
    pub ended: Instant,
}

pub struct Encoder {
    engine: EngineSlot<engine::Encoder>,
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    captioner: mpsc::Sender<EncodedBatch>,
}

impl Encoder {
    /// `captioner` has a capacity of 1, so that one batch waits while another is captioned.
    pub fn new(context: &Context, captioner: mpsc::Sender<EncodedBatch>) -> Self {
        let Context { ownership, run, observer, .. } = context.clone();
        Self { engine: EngineSlot::new(Model::take_encoder), ownership, run, observer, captioner }
    }

    /// Runs until its input ends; blocks its thread.
    pub fn run(mut self, mut input: mpsc::Receiver<Batch>) -> Result<()> {
        loop {
            let idle = Instant::now();
            let Some(mut batch) = input.blocking_recv() else {
                return Ok(());
            };
            self.observer.waited(Stage::Encode, WaitFor::Upstream, idle);
            if self.run.has_failed() {
                return Ok(());
            }
            batch.retain_current(&self.ownership);
            let Batch { items, model, mut pixels } = batch;
            let began = Instant::now();
            let encoded = match items.is_empty() {
                true => None,
                false => Some(self.engine.of(&model)?.encode_pixels(&mut pixels)?),
            };
            model.give_back(pixels);
            let Some(encoded) = encoded else {
                continue;
            };
            self.observer.busy(Stage::Encode, began);
            let ended = Instant::now();
            // Captioning ends before encoding only when the run has failed.
            let batch = EncodedBatch { items, model, encoded, began, ended };
            let _ = self.captioner.blocking_send(batch);
            self.observer.waited(Stage::Encode, WaitFor::Downstream, ended);
        }
    }
}
