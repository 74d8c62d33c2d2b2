//! Images to batches: each image is normalised into its row of the vision tower's input when it
//! comes. A batch leaves when it is full, or when it has lingered and the model is free. While the
//! model is busy a batch goes on filling, so that batches are larger under load.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::engine::Pixels;
use crate::worker::context::Context;
use crate::worker::item::{Decoded, Item};
use crate::worker::models::Model;
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::stage::Stage;

/// Decoded images, and their pixels as the vision tower of their model takes them.
pub struct Batch {
    pub items: Vec<Item<Decoded>>,
    pub model: Arc<Model>,
    pub pixels: Pixels,
}

impl Batch {
    /// Drops the items whose work no longer counts.
    pub fn retain_current(&mut self, ownership: &Ownership) {
        let current: Vec<bool> =
            self.items.iter().map(|item| item.origin().is_current(ownership)).collect();
        if current.iter().all(|is_current| *is_current) {
            return;
        }
        self.pixels.retain(|number| current.get(number).copied().unwrap_or(false));
        let mut counts = current.into_iter();
        self.items.retain(|_| counts.next().unwrap_or(false));
    }
}

pub struct Batcher {
    size: usize,
    linger: Duration,
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    encoder: mpsc::Sender<Batch>,
}

/// How the collection of a batch ended.
enum Filled {
    /// It was sent; an image of another model may have ended it.
    Sent(Option<Box<Item<Decoded>>>),
    /// The run is over.
    Closed,
}

impl Batcher {
    /// Batches of up to `size` images. `encoder` has a capacity of 1, so that one batch waits while
    /// another is encoded.
    pub fn new(
        size: usize,
        linger: Duration,
        context: &Context,
        encoder: mpsc::Sender<Batch>,
    ) -> Self {
        let Context { ownership, run, observer, .. } = context.clone();
        Self { size, linger, ownership, run, observer, encoder }
    }

    /// Runs until its input ends or nobody takes batches any more.
    pub async fn run(self, mut input: mpsc::Receiver<Item<Decoded>>) {
        let mut first = input.recv().await;
        while let Some(image) = first {
            let pixels = match image.state.model.buffer().await {
                Ok(pixels) => pixels,
                Err(error) => return self.run.fail(error),
            };
            first = match self.fill(pixels, image, &mut input).await {
                Filled::Sent(Some(image)) => Some(*image),
                Filled::Sent(None) => input.recv().await,
                Filled::Closed => return,
            };
        }
    }

    /// Collects one batch and sends it.
    async fn fill(
        &self,
        mut pixels: Pixels,
        first: Item<Decoded>,
        input: &mut mpsc::Receiver<Item<Decoded>>,
    ) -> Filled {
        let deadline = Instant::now() + self.linger;
        pixels.clear();
        let model = Arc::clone(&first.state.model);
        let mut batch = Batch { items: Vec::with_capacity(self.size), model, pixels };
        let mut next = Some(first);
        let mut left_over = None;
        let mut lingered = false;
        let mut more = true;
        loop {
            if let Some(image) = next.take()
                && !self.push(image, &mut batch)
            {
                return Filled::Closed;
            }
            let full = batch.items.len() >= self.size || left_over.is_some();
            tokio::select! {
                biased;
                image = input.recv(), if more && !full => match image {
                    Some(image) if Arc::ptr_eq(&image.state.model, &batch.model) => next = Some(image),
                    Some(image) => left_over = Some(image),
                    None => more = false,
                },
                permit = self.encoder.reserve(), if full || lingered || !more => {
                    let Ok(permit) = permit else {
                        return Filled::Closed;
                    };
                    batch.retain_current(&self.ownership);
                    self.observer.metrics.batch_images.record(batch.items.len() as u64, &[]);
                    // Also when it is empty: the encoder gives its pixels back.
                    permit.send(batch);
                    return Filled::Sent(left_over.map(Box::new));
                }
                () = sleep_until(deadline), if !lingered && !full => lingered = true,
            }
        }
    }

    /// Moves an image and its pixels into the batch. Returns `false` where that fails, which ends the
    /// run.
    fn push(&self, mut image: Item<Decoded>, batch: &mut Batch) -> bool {
        let started = std::time::Instant::now();
        let rgb = std::mem::take(&mut image.state.pixels.rgb);
        if let Err(error) = batch.pixels.push(&image.state.model.preprocessor, &rgb) {
            self.run.fail(error);
            return false;
        }
        batch.items.push(image);
        self.observer.busy(Stage::Batch, started);
        true
    }
}
