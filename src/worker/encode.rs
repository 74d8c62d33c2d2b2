//! Batches to what the decoder starts from, on the thread that owns the vision tower. While one
//! batch is captioned the next one is encoded here.
//!
//! An error of the engine is never one image's fault: it ends the worker, and whatever was not
//! committed is read again by its successor.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::engine::{Encoded, Encoder};
use crate::error::Result;
use crate::worker::batch::Batch;
use crate::worker::context::Shared;
use crate::worker::item::DecodedImage;
use crate::worker::models::{Half, Model};
use crate::worker::telemetry::step::{Side, Step};

/// A batch on its way from the encoder to the decoder.
pub struct EncodedBatch {
    pub images: Vec<DecodedImage>,
    pub model: Arc<Model>,
    pub encoded: Encoded,
    pub began: Instant,
    /// When encoding ended.
    pub ended: Instant,
}

pub struct Encode {
    pub encoder: Half<Encoder>,
    pub shared: Arc<Shared>,
    /// Of capacity 1, so that one batch waits while another is captioned.
    pub caption: mpsc::Sender<EncodedBatch>,
}

impl Encode {
    /// Runs until its input ends; blocks its thread.
    pub fn run(mut self, mut input: mpsc::Receiver<Batch>) -> Result<()> {
        loop {
            let idle = Instant::now();
            let Some(mut batch) = input.blocking_recv() else {
                return Ok(());
            };
            self.shared.waited(Step::Encode, Side::Input, idle);
            if self.shared.has_failed() {
                return Ok(());
            }
            batch.retain_current(&self.shared);
            let Batch { images, model, mut pixels } = batch;
            let began = Instant::now();
            let encoded = match images.is_empty() {
                true => None,
                false => Some(self.encoder.of(&model)?.encode_pixels(&mut pixels)?),
            };
            model.give_back(pixels);
            let Some(encoded) = encoded else {
                continue;
            };
            self.shared.busy(Step::Encode, began);
            let ended = Instant::now();
            // Captioning ends before encoding only when the run has failed.
            let batch = EncodedBatch { images, model, encoded, began, ended };
            let _ = self.caption.blocking_send(batch);
            self.shared.waited(Step::Encode, Side::Output, ended);
        }
    }
}
