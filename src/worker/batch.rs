//! Images to batches: a batch leaves when it is full, or when it has lingered and the model is
//! free. While the model is busy a batch goes on filling, so that batches are larger under load.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::worker::flow::DecodedImage;
use crate::worker::shared::Shared;

pub struct Batcher {
    pub size: usize,
    pub linger: Duration,
    pub shared: Arc<Shared>,
    /// Of capacity 1: one batch waits while another is encoded.
    pub encode: mpsc::Sender<Vec<DecodedImage>>,
}

impl Batcher {
    /// Runs until its input ends.
    pub async fn run(self, mut input: mpsc::Receiver<DecodedImage>) {
        while let Some(first) = input.recv().await {
            if !self.fill(first, &mut input).await {
                return;
            }
        }
    }

    /// Collects one batch and sends it. Returns `false` when nobody takes it any more.
    async fn fill(&self, first: DecodedImage, input: &mut mpsc::Receiver<DecodedImage>) -> bool {
        let deadline = Instant::now() + self.linger;
        let mut images = Vec::with_capacity(self.size);
        images.push(first);
        let mut lingered = false;
        let mut more = true;
        loop {
            let full = images.len() >= self.size;
            tokio::select! {
                biased;
                image = input.recv(), if more && !full => match image {
                    Some(image) => images.push(image),
                    None => more = false,
                },
                place = self.encode.reserve(), if full || lingered || !more => {
                    let Ok(place) = place else {
                        return false;
                    };
                    images.retain(|image| self.shared.is_current(&image.origin));
                    if !images.is_empty() {
                        self.shared.metrics.batch_images.record(images.len() as u64, &[]);
                        place.send(images);
                    }
                    return true;
                }
                () = sleep_until(deadline), if !lingered && !full => lingered = true,
            }
        }
    }
}
