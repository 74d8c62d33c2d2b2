//! Encoded batches to captions, on the thread that owns the decoder.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::engine::{Caption, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::worker::context::Shared;
use crate::worker::encode::EncodedBatch;
use crate::worker::item::DecodedImage;
use crate::worker::models::Half;
use crate::worker::outcome::{Captioned, Outcome};
use crate::worker::publish::event::Event;
use crate::worker::telemetry::spans::BatchTimes;
use crate::worker::telemetry::step::{Side, Step};

pub struct Captioner {
    pub writer: Half<Writer>,
    pub shared: Arc<Shared>,
    pub publisher: Sender<Event>,
}

impl Captioner {
    /// Runs until its input ends; blocks its thread.
    pub fn run(mut self, mut input: mpsc::Receiver<EncodedBatch>) -> Result<()> {
        loop {
            let idle = Instant::now();
            let Some(batch) = input.blocking_recv() else {
                return Ok(());
            };
            self.shared.waited(Step::Caption, Side::Input, idle);
            if self.shared.has_failed() {
                return Ok(());
            }
            // What is stale in part is captioned whole; the publisher drops that part.
            if !batch.images.iter().any(|image| self.shared.is_current(&image.origin)) {
                continue;
            }
            let outcomes = self.one(batch)?;
            // The publisher ends first only when the run is over.
            let _ = self.publisher.send(Event::Finished(outcomes));
        }
    }

    fn one(&mut self, batch: EncodedBatch) -> Result<Vec<Outcome>> {
        let started = Instant::now();
        let EncodedBatch { images, model, encoded, began, ended } = batch;
        let captions = self.writer.of(&model)?.write(encoded)?;
        self.shared.busy(Step::Caption, started);
        self.shared.slowest.batch(began.elapsed());
        if captions.len() != images.len() {
            return Err(Error::new(ErrorKind::Internal, "a batch came back in another size")
                .with("images", images.len())
                .with("captions", captions.len()));
        }
        let times = BatchTimes { began, encoded: ended, writing: started, written: Instant::now() };
        self.shared.spans.inferred(images.iter().map(|image| &image.origin.trace), times);
        tracing::debug!(images = images.len(), elapsed = ?began.elapsed(), "batch captioned");
        let pairs = images.into_iter().zip(captions);
        Ok(pairs.flat_map(|(image, caption)| captioned(image, caption)).collect())
    }
}

/// The image's outcome, and those of the references that waited for it.
fn captioned(image: DecodedImage, caption: Caption) -> Vec<Outcome> {
    let DecodedImage { origin, request, object, pixels, model, lead } = image;
    lead.answer(Outcome::Captioned(Box::new(Captioned {
        origin,
        request,
        object,
        content_type: pixels.content_type,
        width: pixels.source_width,
        height: pixels.source_height,
        caption,
        model: Arc::clone(&model.identity),
    })))
}
