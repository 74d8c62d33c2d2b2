//! Bytes to pixels, on a pool of blocking threads sized to the cores.
//!
//! Decoders read hostile input: a panic in one is contained and becomes the record's dead letter,
//! and so does an image that takes longer than `limits.decode_timeout_ms`. A thread can't be
//! stopped, so a decoder that hangs keeps its place. When all places are lost that way the run
//! fails, a while after the last dead letter was sent: what is started next goes on behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{Limits, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::image::DecodedPixels;
use crate::message::Stage;
use crate::worker::context::Shared;
use crate::worker::item::{DecodedImage, FetchedImage};
use crate::worker::models::{self, Model, Models};
use crate::worker::outcome::Outcome;
use crate::worker::publish::event::Event;
use crate::worker::supervise::check;
use crate::worker::telemetry::step::{Side, Step};

/// What the dead letters of decoders that hang get at least to be committed in.
const COMMITTING: Duration = Duration::from_secs(3);

pub struct Decode {
    pub models: Arc<Models>,
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

/// The places in which images are decoded, and how many of them are lost to decoders that hang.
struct Pool {
    free: Arc<Semaphore>,
    hanging: Arc<AtomicUsize>,
    threads: usize,
}

/// One place, until both the task and the thread that share it are through.
struct Place {
    _permit: OwnedSemaphorePermit,
    hangs: AtomicBool,
    hanging: Arc<AtomicUsize>,
}

impl Pool {
    fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        Self { free: Arc::new(Semaphore::new(threads)), hanging: Arc::default(), threads }
    }

    /// Waits for a free place; none where all were lost for as long as `patience`.
    async fn place(&self, patience: Duration) -> Option<Arc<Place>> {
        loop {
            let were_lost = self.is_lost();
            let free = timeout(patience, Arc::clone(&self.free).acquire_owned()).await;
            match free {
                Ok(permit) => {
                    let hanging = Arc::clone(&self.hanging);
                    let hangs = AtomicBool::new(false);
                    return permit
                        .ok()
                        .map(|permit| Arc::new(Place { _permit: permit, hangs, hanging }));
                }
                Err(_) if were_lost && self.is_lost() => return None,
                Err(_) => {}
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.hanging.load(Ordering::Relaxed) >= self.threads
    }
}

impl Place {
    fn hangs(&self) {
        self.hangs.store(true, Ordering::Relaxed);
        self.hanging.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.hangs.load(Ordering::Relaxed) {
            self.hanging.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Decode {
    /// Runs until its input ends or every decoder hangs.
    pub async fn run(self, mut input: mpsc::Receiver<FetchedImage>) {
        let decode = Arc::new(self);
        let pool = Pool::new(decode.threads);
        let mut tasks = JoinSet::new();
        let mut model = decode.models.serving();
        loop {
            let idle = Instant::now();
            let image = tokio::select! {
                image = input.recv() => image,
                () = decode.models.offered() => {
                    // Behind the last image of the one before comes none of it any more.
                    while let Some(ended) = tasks.join_next().await {
                        check(&decode.shared, ended);
                    }
                    if let Some(next) = decode.models.turn() {
                        let before = std::mem::replace(&mut model, next);
                        models::tell(&decode.shared.metrics, &model.identity, Some(&before.identity));
                    }
                    continue;
                }
            };
            let Some(image) = image else {
                break;
            };
            decode.shared.waited(Step::Decode, Side::Input, idle);
            let Some(place) = pool.place(decode.limit().max(COMMITTING)).await else {
                decode.shared.fail(decode.lost(&pool));
                return;
            };
            while let Some(ended) = tasks.try_join_next() {
                check(&decode.shared, ended);
            }
            tasks.spawn(Arc::clone(&decode).one(image, Arc::clone(&model), place));
        }
        while let Some(ended) = tasks.join_next().await {
            check(&decode.shared, ended);
        }
    }

    async fn one(self: Arc<Self>, image: FetchedImage, model: Arc<Model>, place: Arc<Place>) {
        if !self.shared.is_current(&image.origin) {
            return;
        }
        let FetchedImage { origin, request, object, bytes, taken, attempts, lead } = image;
        origin.trace.step("decode wait", Instant::now());
        let decoded = self.pixels(bytes, &model, &place).await;
        origin.trace.step_of("decode", decoded.as_ref().err());
        // A decoder that hangs keeps its bytes, but must not keep the others from theirs.
        drop(taken);
        match decoded {
            Ok(pixels) => {
                let decoded = DecodedImage { origin, request, object, pixels, model, lead };
                let full = Instant::now();
                // Batching ends before decoding only when the run has failed.
                let _ = self.batch.send(decoded).await;
                self.shared.waited(Step::Decode, Side::Output, full);
            }
            Err(error) => {
                if error.kind() == ErrorKind::DecodeTimeout {
                    let _in_trace = origin.in_trace();
                    tracing::warn!(uri = request.uri(), "an image takes too long to decode");
                }
                let outcome =
                    Outcome::failed(origin, Some(request), Stage::Decode, error, attempts);
                let _ = self.publisher.send(Event::Finished(lead.answer(outcome)));
            }
        }
    }

    async fn pixels(
        &self,
        bytes: Vec<u8>,
        model: &Model,
        place: &Arc<Place>,
    ) -> Result<DecodedPixels> {
        let limit = self.limit();
        // All that the thread holds: it may outlive the run.
        let (preprocessor, limits) = (model.preprocessor.clone(), self.limits);
        let (shared, held) = (Arc::clone(&self.shared), Arc::clone(place));
        let decoding = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let pixels = preprocessor.decode(&bytes, &limits);
            shared.busy(Step::Decode, started);
            drop(held);
            pixels
        });
        match timeout(limit, decoding).await {
            Ok(Ok(pixels)) => pixels,
            Ok(Err(_)) => {
                Err(Error::new(ErrorKind::CorruptImage, "the image made its decoder panic"))
            }
            Err(_) => {
                place.hangs();
                Err(Error::new(ErrorKind::DecodeTimeout, "the image takes too long to decode")
                    .with("limits.decode_timeout_ms", limit.as_millis()))
            }
        }
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.limits.decode_timeout_ms)
    }

    fn lost(&self, pool: &Pool) -> Error {
        Error::new(
            ErrorKind::Internal,
            "every decoder hangs; the worker must be started again, and goes on behind their images",
        )
        .with("decode threads", pool.threads)
        .with("limits.decode_timeout_ms", self.limits.decode_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn a_place_is_free_when_both_of_its_holders_are_through() {
        let pool = Pool::new(1);
        let task = pool.place(SHORT).await.unwrap();
        let thread = Arc::clone(&task);
        task.hangs();
        drop(task);
        assert!(pool.is_lost());
        assert!(pool.place(SHORT).await.is_none());
        drop(thread);
        assert!(!pool.is_lost());
        assert!(pool.place(SHORT).await.is_some());
    }

    /// Images that are only slow, within the limit, are waited for.
    #[tokio::test]
    async fn a_busy_pool_is_not_a_lost_one() {
        let pool = Pool::new(2);
        let (first, second) = (pool.place(SHORT).await.unwrap(), pool.place(SHORT).await.unwrap());
        first.hangs();
        let waiting = timeout(SHORT * 10, pool.place(SHORT)).await;
        assert!(waiting.is_err(), "a pool was given up with a place that works");
        drop(second);
        assert!(pool.place(SHORT).await.is_some());
        drop(first);
    }
}
