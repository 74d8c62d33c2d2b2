//! Images to batches: each image is normalised into its place in the vision tower's input when it
//! comes. A batch leaves when it is full, or when it has lingered and the model is free. While the
//! model is busy a batch goes on filling, so that batches are larger under load.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::engine::Pixels;
use crate::image::Preprocessor;
use crate::worker::flow::DecodedImage;
use crate::worker::shared::{Shared, Step};

/// Inputs that go round: one is filled, one is full and waits, one is encoded.
pub const INPUTS: usize = 3;

/// Images and what the vision tower reads of them.
pub struct Batch {
    pub images: Vec<DecodedImage>,
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
    size: usize,
    linger: Duration,
    preprocessor: Preprocessor,
    shared: Arc<Shared>,
    encode: mpsc::Sender<Batch>,
    /// Inputs that are free again.
    free: mpsc::Receiver<Pixels>,
}

impl Batcher {
    /// The batcher, and where the encoder gives inputs back. `encode` is of capacity 1: one batch
    /// waits while another is encoded.
    pub fn new(
        size: usize,
        linger: Duration,
        preprocessor: Preprocessor,
        shared: Arc<Shared>,
        encode: mpsc::Sender<Batch>,
        inputs: [Pixels; INPUTS],
    ) -> (Self, mpsc::Sender<Pixels>) {
        let (give_back, free) = mpsc::channel(INPUTS);
        for pixels in inputs {
            // There is room for all of them.
            let _ = give_back.try_send(pixels);
        }
        (Self { size, linger, preprocessor, shared, encode, free }, give_back)
    }

    /// Runs until its input ends or nobody takes batches any more.
    pub async fn run(mut self, mut input: mpsc::Receiver<DecodedImage>) {
        while let Some(pixels) = self.free.recv().await {
            let Some(first) = input.recv().await else {
                return;
            };
            if !self.fill(pixels, first, &mut input).await {
                return;
            }
        }
    }

    /// Collects one batch and sends it. Returns `false` when nobody takes it any more.
    async fn fill(
        &self,
        mut pixels: Pixels,
        first: DecodedImage,
        input: &mut mpsc::Receiver<DecodedImage>,
    ) -> bool {
        let deadline = Instant::now() + self.linger;
        pixels.clear();
        let mut batch = Batch { images: Vec::with_capacity(self.size), pixels };
        let mut next = Some(first);
        let mut lingered = false;
        let mut more = true;
        loop {
            if let Some(image) = next.take()
                && !self.place(image, &mut batch)
            {
                return false;
            }
            let full = batch.images.len() >= self.size;
            tokio::select! {
                biased;
                image = input.recv(), if more && !full => match image {
                    Some(image) => next = Some(image),
                    None => more = false,
                },
                place = self.encode.reserve(), if full || lingered || !more => {
                    let Ok(place) = place else {
                        return false;
                    };
                    batch.retain_current(&self.shared);
                    self.shared.metrics.batch_images.record(batch.images.len() as u64, &[]);
                    // Empty or not: the encoder gives its input back.
                    place.send(batch);
                    return true;
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
        if let Err(error) = batch.pixels.push(&self.preprocessor, &rgb) {
            self.shared.fail(error);
            return false;
        }
        batch.images.push(image);
        self.shared.busy(Step::Batch, started);
        true
    }
}
