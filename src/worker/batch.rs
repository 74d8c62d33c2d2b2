//! Images to batches: each image is normalised into its place in the vision tower's input when it
//! comes. A batch leaves when it is full, or when it has lingered and the model is free. While the
//! model is busy a batch goes on filling, so that batches are larger under load.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::engine::Pixels;
use crate::worker::context::Shared;
use crate::worker::item::DecodedImage;
use crate::worker::models::Model;
use crate::worker::telemetry::step::Step;

/// Images and what the vision tower of their model reads of them.
pub struct Batch {
    pub images: Vec<DecodedImage>,
    pub model: Arc<Model>,
    pub pixels: Pixels,
}

impl Batch {
    /// Drops the images whose work no longer counts.
    pub fn retain_current(&mut self, shared: &Shared) {
        if self.images.iter().all(|image| shared.is_current(&image.origin)) {
            return;
        }
        let current: Vec<bool> =
            self.images.iter().map(|image| shared.is_current(&image.origin)).collect();
        self.pixels.retain(|number| current.get(number).copied().unwrap_or(false));
        let mut counts = current.into_iter();
        self.images.retain(|_| counts.next().unwrap_or(false));
    }
}

pub struct Batcher {
    pub size: usize,
    pub linger: Duration,
    pub shared: Arc<Shared>,
    /// Of capacity 1, so that one batch waits while another is encoded.
    pub encode: mpsc::Sender<Batch>,
}

impl Batcher {
    /// Runs until its input ends or nobody takes batches any more.
    pub async fn run(self, mut input: mpsc::Receiver<DecodedImage>) {
        let mut first = input.recv().await;
        while let Some(image) = first {
            let pixels = match image.model.input().await {
                Ok(pixels) => pixels,
                Err(error) => return self.shared.fail(error),
            };
            let Some(left_over) = self.fill(pixels, image, &mut input).await else {
                return;
            };
            first = match left_over {
                Some(image) => Some(image),
                None => input.recv().await,
            };
        }
    }

    /// Collects one batch and sends it; the image of another model that ended it, if one did. None
    /// when nobody takes it any more.
    async fn fill(
        &self,
        mut pixels: Pixels,
        first: DecodedImage,
        input: &mut mpsc::Receiver<DecodedImage>,
    ) -> Option<Option<DecodedImage>> {
        let deadline = Instant::now() + self.linger;
        pixels.clear();
        let model = Arc::clone(&first.model);
        let mut batch = Batch { images: Vec::with_capacity(self.size), model, pixels };
        let mut next = Some(first);
        let mut left_over = None;
        let mut lingered = false;
        let mut more = true;
        loop {
            if let Some(image) = next.take()
                && !self.place(image, &mut batch)
            {
                return None;
            }
            let full = batch.images.len() >= self.size || left_over.is_some();
            tokio::select! {
                biased;
                image = input.recv(), if more && !full => match image {
                    Some(image) if Arc::ptr_eq(&image.model, &batch.model) => next = Some(image),
                    Some(image) => left_over = Some(image),
                    None => more = false,
                },
                place = self.encode.reserve(), if full || lingered || !more => {
                    let Ok(place) = place else {
                        return None;
                    };
                    batch.retain_current(&self.shared);
                    self.shared.metrics.batch_images.record(batch.images.len() as u64, &[]);
                    // Empty or not: the encoder gives its input back.
                    place.send(batch);
                    return Some(left_over);
                }
                () = sleep_until(deadline), if !lingered && !full => lingered = true,
            }
        }
    }

    /// Puts an image into the batch; its own pixels are no longer needed then. Returns `false`
    /// where that can't be, which ends the run.
    fn place(&self, mut image: DecodedImage, batch: &mut Batch) -> bool {
        let started = std::time::Instant::now();
        let rgb = std::mem::take(&mut image.pixels.rgb);
        if let Err(error) = batch.pixels.push(&image.model.preprocessor, &rgb) {
            self.shared.fail(error);
            return false;
        }
        batch.images.push(image);
        self.shared.busy(Step::Batch, started);
        true
    }
}
