//! References to bytes: reads each object from the store, many at once.
//!
//! Requests are coalesced first (`coalesce`). A read holds its permit until the decoders take the
//! image, so that memory is bounded by the permits there are (`concurrency`), and by
//! `limits.max_buffered_bytes` until the image is decoded. How one object is read is the business of
//! `reader`.

mod concurrency;
mod hedge;
mod probe;
mod reader;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::error::ErrorKind;
use crate::message::FailedStage;
use crate::retry::RetryError;
use crate::s3::Store;
use crate::worker::coalesce::{Coalescer, Leading, Role};
use crate::worker::context::Context;
use crate::worker::fetch::concurrency::{ConcurrencyLimit, FetchPermit};
use crate::worker::fetch::reader::ObjectReader;
use crate::worker::item::{Fetched, Item, Referenced};
use crate::worker::models::Models;
use crate::worker::outbox::Outbox;
use crate::worker::outcome::{ObjectState, Reference};
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::supervise::check_task;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::stage::{Stage, WaitFor};

pub struct Fetcher {
    ownership: Arc<Ownership>,
    run: Arc<Run>,
    observer: Arc<Observer>,
    outbox: Outbox,
    coalescer: Arc<Coalescer>,
    /// References that lead because their leader was dropped.
    promoted: mpsc::UnboundedReceiver<Leading>,
    reader: ObjectReader,
    concurrency: ConcurrencyLimit,
    decoder: mpsc::Sender<Item<Fetched>>,
}

impl Fetcher {
    pub fn new(
        config: &Config,
        context: &Context,
        store: Store,
        models: Arc<Models>,
        decoder: mpsc::Sender<Item<Fetched>>,
    ) -> Self {
        let reader = ObjectReader::new(config, context, store);
        let Context { ownership, run, observer, outbox, .. } = context.clone();
        let (coalescer, promoted) = Coalescer::new(
            &config.limits,
            Arc::clone(&ownership),
            models,
            Arc::clone(&observer.metrics),
        );
        let concurrency = ConcurrencyLimit::new(decoder.max_capacity(), config.s3.concurrency);
        Self { ownership, run, observer, outbox, coalescer, promoted, reader, concurrency, decoder }
    }

    /// Runs until its input ends or the run fails. `input` has no bound of its own: references in
    /// flight are bounded by `limits.max_in_flight`.
    pub async fn run(mut self, mut input: mpsc::UnboundedReceiver<Reference>) {
        let (_, none) = mpsc::unbounded_channel();
        let mut promoted = std::mem::replace(&mut self.promoted, none);
        let fetcher = Arc::new(self);
        tokio::select! {
            () = Arc::clone(&fetcher).fetch_all(&mut input, &mut promoted) => {}
            () = fetcher.reader.probe_while_open() => {}
        }
    }

    async fn fetch_all(
        self: Arc<Self>,
        input: &mut mpsc::UnboundedReceiver<Reference>,
        promoted: &mut mpsc::UnboundedReceiver<Leading>,
    ) {
        let mut tasks = JoinSet::new();
        while let Some(item) = self.next(input, promoted).await {
            let permit = self.concurrency.acquire(|| self.is_decoder_idle()).await;
            while let Some(ended) = tasks.try_join_next() {
                check_task(&self.run, ended);
            }
            tasks.spawn(Arc::clone(&self).fetch(item, permit));
        }
        while let Some(ended) = tasks.join_next().await {
            check_task(&self.run, ended);
        }
    }

    /// The next reference to work on; None when the input has ended.
    async fn next(
        &self,
        input: &mut mpsc::UnboundedReceiver<Reference>,
        promoted: &mut mpsc::UnboundedReceiver<Leading>,
    ) -> Option<Item<Referenced>> {
        loop {
            let reference = tokio::select! {
                biased;
                Some(leading) = promoted.recv() => return Some(leading.into()),
                reference = input.recv() => reference?,
            };
            if !reference.origin.is_current(&self.ownership) {
                continue;
            }
            match self.coalescer.join(reference) {
                Role::Leads(leading) => return Some(leading.into()),
                Role::Follows => {}
                Role::Answered(outcome) => self.outbox.finish_answered(outcome),
            }
        }
    }

    /// Whether no object that was read waits for a decoder.
    fn is_decoder_idle(&self) -> bool {
        self.decoder.capacity() == self.decoder.max_capacity()
    }

    async fn fetch(self: Arc<Self>, item: Item<Referenced>, permit: FetchPermit) {
        if !item.origin().is_current(&self.ownership) {
            return;
        }
        let is_wanted = || item.origin().is_current(&self.ownership) && !self.run.has_failed();
        let began = Instant::now();
        item.origin().trace.step("queue", began);
        let read = self.reader.read(&item, is_wanted).await;
        let Reference { origin, request } = &item.reference;
        match read {
            Ok(read) => {
                let bytes = read.object.bytes.len();
                origin.trace.fetched(request, read.attempts, Ok(bytes));
                self.observer.metrics.fetched_bytes.add(bytes as u64, &[]);
                let (etag, version_id) = (read.object.etag, read.object.version_id);
                let fetched = Fetched {
                    object: ObjectState { etag, version_id },
                    bytes: read.object.bytes,
                    reserved: read.reserved,
                    attempts: read.attempts,
                };
                self.hand_over(item.with(fetched), permit, began.elapsed()).await;
            }
            // The item is stale, whatever the object is: its followers go on.
            Err(_) if !origin.is_current(&self.ownership) => {}
            Err(RetryError { error, attempts }) => {
                origin.trace.fetched(request, attempts, Err(&error));
                if error.kind() == ErrorKind::AccessDenied {
                    let _in_trace = origin.in_trace();
                    tracing::warn!(
                        error = error.chain(),
                        "the object store refused access: check the s3 credentials and the \
                         bucket's policy"
                    );
                }
                self.outbox.fail(item, FailedStage::Fetch, error, attempts);
            }
        }
    }

    async fn hand_over(&self, item: Item<Fetched>, permit: FetchPermit, read: Duration) {
        if self.is_decoder_idle() {
            permit.found_idle_decoder();
        }
        let full = Instant::now();
        // The decoders end before the fetchers only when the run has failed.
        let _ = self.decoder.send(item).await;
        permit.release(read, full.elapsed());
        self.observer.waited(Stage::Fetch, WaitFor::Downstream, full);
        self.observer.metrics.fetch_concurrency_limit.record(self.concurrency.limit() as u64, &[]);
    }
}
