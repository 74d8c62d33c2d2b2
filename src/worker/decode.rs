//! Bytes to pixels, on a pool of blocking threads sized to the cores.
//!
//! Decoders read hostile input: a panic in one is contained and becomes the item's dead letter, and so
//! does an image that takes longer than `limits.decode_timeout_ms`. A thread can't be stopped, so a
//! decoder that hangs keeps its slot. When all slots are lost that way the run fails, a while after
//! the last dead letter was sent: the next process goes on behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{Config, Limits, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::image::DecodedPixels;
use crate::message::FailedStage;
use crate::worker::context::Context;
use crate::worker::item::{Decoded, Fetched, Item};
use crate::worker::models::{self, Model, Models};
use crate::worker::outbox::Outbox;
use crate::worker::outcome::Failed;
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::supervise::check_task;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::stage::{Stage, WaitFor};

/// Minimum time to commit the dead letters of hung decoders.
const COMMIT_TIME: Duration = Duration::from_secs(3);

pub struct Decoder {
    models: Arc<Models>,
    limits: Limits,
    threads: usize,
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    outbox: Outbox,
    batcher: mpsc::Sender<Item<Decoded>>,
}

/// Threads that decode, as configured; one a core by default.
pub fn threads(runtime: &Runtime) -> usize {
    match runtime.decode_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// The slots in which images are decoded, and how many of them are lost to decoders that hang.
struct Pool {
    free: Arc<Semaphore>,
    hanging: Arc<AtomicUsize>,
    threads: usize,
}

/// One slot, until both the task and the thread that share it have ended.
struct Slot {
    _permit: OwnedSemaphorePermit,
    hangs: AtomicBool,
    hanging: Arc<AtomicUsize>,
}

impl Pool {
    fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        Self { free: Arc::new(Semaphore::new(threads)), hanging: Arc::default(), threads }
    }

    /// Waits for a free slot; None when all have been lost for `patience`.
    async fn acquire(&self, patience: Duration) -> Option<Arc<Slot>> {
        loop {
            let were_lost = self.is_lost();
            let free = timeout(patience, Arc::clone(&self.free).acquire_owned()).await;
            match free {
                Ok(permit) => {
                    let hanging = Arc::clone(&self.hanging);
                    let hangs = AtomicBool::new(false);
                    return permit
                        .ok()
                        .map(|permit| Arc::new(Slot { _permit: permit, hangs, hanging }));
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

impl Slot {
    fn hangs(&self) {
        self.hangs.store(true, Ordering::Relaxed);
        self.hanging.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.hangs.load(Ordering::Relaxed) {
            self.hanging.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Decoder {
    pub fn new(
        config: &Config,
        context: &Context,
        models: Arc<Models>,
        batcher: mpsc::Sender<Item<Decoded>>,
    ) -> Self {
        let Context { ownership, run, observer, outbox, .. } = context.clone();
        let (limits, threads) = (config.limits, threads(&config.runtime));
        Self { models, limits, threads, ownership, run, observer, outbox, batcher }
    }

    /// Runs until its input ends or all decode threads hang.
    pub async fn run(self, mut input: mpsc::Receiver<Item<Fetched>>) {
        let decoder = Arc::new(self);
        let pool = Pool::new(decoder.threads);
        let mut tasks = JoinSet::new();
        let mut model = decoder.models.serving();
        loop {
            let idle = Instant::now();
            let item = tokio::select! {
                item = input.recv() => item,
                () = decoder.models.next_changed() => {
                    // No image of the model before comes after these.
                    while let Some(ended) = tasks.join_next().await {
                        check_task(&decoder.run, ended);
                    }
                    if let Some(next) = decoder.models.swap() {
                        let before = std::mem::replace(&mut model, next);
                        let metrics = &decoder.observer.metrics;
                        models::announce(metrics, &model.identity, Some(&before.identity));
                    }
                    continue;
                }
            };
            let Some(item) = item else {
                break;
            };
            decoder.observer.waited(Stage::Decode, WaitFor::Upstream, idle);
            let Some(slot) = pool.acquire(decoder.timeout().max(COMMIT_TIME)).await else {
                decoder.run.fail(decoder.all_hang(&pool));
                return;
            };
            while let Some(ended) = tasks.try_join_next() {
                check_task(&decoder.run, ended);
            }
            tasks.spawn(Arc::clone(&decoder).decode(item, Arc::clone(&model), slot));
        }
        while let Some(ended) = tasks.join_next().await {
            check_task(&decoder.run, ended);
        }
    }

    async fn decode(self: Arc<Self>, item: Item<Fetched>, model: Arc<Model>, slot: Arc<Slot>) {
        if !item.origin().is_current(&self.ownership) {
            return;
        }
        let (item, Fetched { object, bytes, reserved, attempts }) = item.split();
        let trace = &item.origin().trace;
        trace.step("decode wait", Instant::now());
        let decoded = self.pixels(bytes, &model, &slot).await;
        trace.step_of("decode", decoded.as_ref().err());
        // A decoder that hangs keeps its bytes, but must not keep the others from theirs.
        drop(reserved);
        match decoded {
            Ok(pixels) => {
                let full = Instant::now();
                // Batching ends before decoding only when the run has failed.
                let _ = self.batcher.send(item.with(Decoded { object, pixels, model })).await;
                self.observer.waited(Stage::Decode, WaitFor::Downstream, full);
            }
            Err(error) => {
                if error.kind() == ErrorKind::DecodeTimeout {
                    let _in_trace = item.origin().in_trace();
                    let uri = item.reference.request.uri();
                    tracing::warn!(uri, "an image takes too long to decode");
                }
                let (stage, model) = (FailedStage::Decode, Arc::clone(&model.identity));
                let failed = Failed { stage, error, attempts, model };
                self.outbox.finish(item, Err(Arc::new(failed)));
            }
        }
    }

    async fn pixels(
        &self,
        bytes: Vec<u8>,
        model: &Model,
        slot: &Arc<Slot>,
    ) -> Result<DecodedPixels> {
        let limit = self.timeout();
        // The thread may outlive the run: it holds these and nothing else.
        let (preprocessor, limits) = (model.preprocessor.clone(), self.limits);
        let (observer, held) = (Arc::clone(&self.observer), Arc::clone(slot));
        let decoding = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let pixels = preprocessor.decode(&bytes, &limits);
            observer.busy(Stage::Decode, started);
            drop(held);
            pixels
        });
        match timeout(limit, decoding).await {
            Ok(Ok(pixels)) => pixels,
            Ok(Err(_)) => {
                Err(Error::new(ErrorKind::CorruptImage, "the image made its decoder panic"))
            }
            Err(_) => {
                slot.hangs();
                Err(Error::new(ErrorKind::DecodeTimeout, "the image takes too long to decode")
                    .with_context("limits.decode_timeout_ms", limit.as_millis()))
            }
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.limits.decode_timeout_ms)
    }

    fn all_hang(&self, pool: &Pool) -> Error {
        Error::new(
            ErrorKind::Internal,
            "all decode threads hang; restart the worker, which continues after their images",
        )
        .with_context("decode threads", pool.threads)
        .with_context("limits.decode_timeout_ms", self.limits.decode_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn a_slot_is_free_when_both_of_its_holders_have_ended() {
        let pool = Pool::new(1);
        let task = pool.acquire(SHORT).await.unwrap();
        let thread = Arc::clone(&task);
        task.hangs();
        drop(task);
        assert!(pool.is_lost());
        assert!(pool.acquire(SHORT).await.is_none());
        drop(thread);
        assert!(!pool.is_lost());
        assert!(pool.acquire(SHORT).await.is_some());
    }

    /// Images that are only slow, within the limit, are waited for.
    #[tokio::test]
    async fn a_busy_pool_is_not_a_lost_one() {
        let pool = Pool::new(2);
        let (first, second) =
            (pool.acquire(SHORT).await.unwrap(), pool.acquire(SHORT).await.unwrap());
        first.hangs();
        let waiting = timeout(SHORT * 10, pool.acquire(SHORT)).await;
        assert!(waiting.is_err(), "a pool was given up with a slot that works");
        drop(second);
        assert!(pool.acquire(SHORT).await.is_some());
        drop(first);
    }
}
