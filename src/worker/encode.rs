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
use crate::worker::flow::DecodedImage;
use crate::worker::shared::{Shared, Side, Step};

/// A batch on its way from the encoder to the decoder.
pub struct EncodedBatch {
    pub images: Vec<DecodedImage>,
    pub encoded: Encoded,
    pub began: Instant,
}

pub struct Encode {
    pub encoder: Encoder,
    pub shared: Arc<Shared>,
    /// Of capacity 1, so that one batch waits while another is captioned.
    pub caption: mpsc::Sender<EncodedBatch>,
}

impl Encode {
    /// Runs until its input ends; blocks its thread.
    pub fn run(mut self, mut input: mpsc::Receiver<Vec<DecodedImage>>) -> Result<()> {
        loop {
            let idle = Instant::now();
            let Some(mut images) = input.blocking_recv() else {
                return Ok(());
            };
            self.shared.waited(Step::Encode, Side::Input, idle);
            if self.shared.has_failed() {
                return Ok(());
            }
            images.retain(|image| self.shared.is_current(&image.origin));
            if images.is_empty() {
                continue;
            }
            let began = Instant::now();
            let pixels: Vec<&[u8]> =
                images.iter().map(|image| image.pixels.rgb.as_slice()).collect();
            let encoded = self.encoder.encode(&pixels)?;
            self.shared.busy(Step::Encode, began);
            for image in &mut images {
                image.pixels.rgb = Vec::new();
            }
            let full = Instant::now();
            // Captioning ends before encoding only when the run has failed.
            let _ = self.caption.blocking_send(EncodedBatch { images, encoded, began });
            self.shared.waited(Step::Encode, Side::Output, full);
        }
    }
}
