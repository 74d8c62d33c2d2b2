//! Batches to captions, on the thread that owns the engine.
//!
//! An error of the engine is never one image's fault: it ends the worker, and whatever was not
//! committed is read again by its successor.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::engine::{Caption, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::worker::flow::{Captioned, DecodedImage, Event, Outcome};
use crate::worker::shared::{Shared, Step};

pub struct Captioner {
    pub engine: Engine,
    pub shared: Arc<Shared>,
    pub publisher: Sender<Event>,
}

impl Captioner {
    /// Runs until its input ends; blocks its thread.
    pub fn run(mut self, mut input: mpsc::Receiver<Vec<DecodedImage>>) -> Result<()> {
        while let Some(mut batch) = input.blocking_recv() {
            if self.shared.has_failed() {
                return Ok(());
            }
            batch.retain(|image| self.shared.is_current(&image.origin));
            if batch.is_empty() {
                continue;
            }
            let outcomes = self.one(batch)?;
            // The publisher ends first only when the run is over.
            let _ = self.publisher.send(Event::Finished(outcomes));
        }
        Ok(())
    }

    fn one(&mut self, batch: Vec<DecodedImage>) -> Result<Vec<Outcome>> {
        let started = Instant::now();
        let pixels: Vec<&[u8]> = batch.iter().map(|image| image.pixels.rgb.as_slice()).collect();
        let captions = self.engine.caption(&pixels)?;
        self.shared.busy(Step::Caption, started);
        self.shared.slowest.batch(started.elapsed());
        if captions.len() != batch.len() {
            return Err(Error::new(ErrorKind::Internal, "a batch came back in another size")
                .with("images", batch.len())
                .with("captions", captions.len()));
        }
        tracing::debug!(images = batch.len(), elapsed = ?started.elapsed(), "batch captioned");
        Ok(batch
            .into_iter()
            .zip(captions)
            .map(|(image, caption)| captioned(image, caption))
            .collect())
    }
}

fn captioned(image: DecodedImage, caption: Caption) -> Outcome {
    let DecodedImage { origin, request, object, pixels } = image;
    Outcome::Captioned(Box::new(Captioned {
        origin,
        request,
        object,
        content_type: pixels.content_type,
        width: pixels.source_width,
        height: pixels.source_height,
        caption,
    }))
}
