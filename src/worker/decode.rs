//! Bytes to pixels, on a pool of blocking threads sized to the cores.
//!
//! Decoders read hostile input: a panic in one is contained and becomes the record's dead letter.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{Limits, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DecodedPixels, Preprocessor};
use crate::worker::fetch::check;
use crate::worker::flow::{DecodedImage, Event, FetchedImage, Outcome};
use crate::worker::message::Stage;
use crate::worker::shared::{Shared, Step};

pub struct Decode {
    pub preprocessor: Preprocessor,
    pub limits: Limits,
    pub threads: usize,
    pub shared: Arc<Shared>,
    pub publisher: std::sync::mpsc::Sender<Event>,
    pub batch: mpsc::Sender<DecodedImage>,
}

/// Threads that decode, as configured; one a core by default.
pub fn threads(runtime: &Runtime) -> usize {
    match runtime.decode_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

impl Decode {
    /// Runs until its input ends.
    pub async fn run(self, mut input: mpsc::Receiver<FetchedImage>) {
        let decode = Arc::new(self);
        let places = Arc::new(Semaphore::new(decode.threads.max(1)));
        let mut tasks = JoinSet::new();
        while let Some(image) = input.recv().await {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            while let Some(ended) = tasks.try_join_next() {
                check(&decode.shared, ended);
            }
            let task = Arc::clone(&decode);
            tasks.spawn(async move {
                task.one(image).await;
                drop(place);
            });
        }
        while let Some(ended) = tasks.join_next().await {
            check(&decode.shared, ended);
        }
    }

    async fn one(self: Arc<Self>, image: FetchedImage) {
        if !self.shared.is_current(&image.origin) {
            return;
        }
        let FetchedImage { origin, request, object, bytes, attempts } = image;
        match Arc::clone(&self).pixels(bytes).await {
            Ok(pixels) => {
                let decoded = DecodedImage { origin, request, object, pixels };
                // Batching ends before decoding only when the run has failed.
                let _ = self.batch.send(decoded).await;
            }
            Err(error) => {
                let outcome =
                    Outcome::failed(origin, Some(request), Stage::Decode, error, attempts);
                let _ = self.publisher.send(Event::Finished(vec![outcome]));
            }
        }
    }

    async fn pixels(self: Arc<Self>, bytes: Vec<u8>) -> Result<DecodedPixels> {
        let decoded = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let pixels = self.preprocessor.decode(&bytes, &self.limits);
            self.shared.busy(Step::Decode, started);
            pixels
        })
        .await;
        match decoded {
            Ok(pixels) => pixels,
            Err(_) => Err(Error::new(ErrorKind::CorruptImage, "the image made its decoder panic")),
        }
    }
}
