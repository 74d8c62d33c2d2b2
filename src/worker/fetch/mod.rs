//! References to bytes: reads each object from the store, many at once.
//!
//! Transient failures are tried again with backoff; then, like permanent ones, they end as dead
//! letters, but only where the store itself is up (`breaker`). A fetcher holds its place until the
//! decoders take the image, so what waits in memory is bounded by the places there are (`depth`),
//! and by `limits.fetch_bytes` until it is decoded.

mod concurrency;
mod hedge;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config;
use crate::error::{Disposition, Error, ErrorKind, Result};
use crate::message::{ImageRequest, Stage};
use crate::retry::{GaveUp, Policy, retry};
use crate::s3::{Object, ObjectRef, Room, Store, Taken};
use crate::worker::breaker::{Asker, Rounds, Told, Verdict};
use crate::worker::coalesce::{Joined, Lead, Leads};
use crate::worker::context::Shared;
use crate::worker::fetch::concurrency::{Depth, Place};
use crate::worker::fetch::hedge::Hedge;
use crate::worker::item::{FetchedImage, Referenced};
use crate::worker::models::Models;
use crate::worker::outcome::{ObjectState, Origin, Outcome};
use crate::worker::publish::event::Event;
use crate::worker::supervise::check;
use crate::worker::telemetry::step::{Side, Step};

/// Probes in a row that show that the store is up.
const PROBES: u32 = 3;

/// An object and the room that it takes up.
type Fetched = (Object, Taken);

pub struct Fetch {
    pub store: Store,
    pub shared: Arc<Shared>,
    pub publisher: std::sync::mpsc::Sender<Event>,
    pub decode: mpsc::Sender<FetchedImage>,
    leads: Arc<Leads>,
    policy: Policy,
    /// Records that were asked for so far.
    askers: AtomicU64,
    depth: Depth,
    hedge: Hedge,
    allowed_buckets: Vec<String>,
    max_bytes: u64,
    room: Room,
}

impl Fetch {
    pub fn new(
        settings: &config::Config,
        store: Store,
        shared: Arc<Shared>,
        models: Arc<Models>,
        publisher: std::sync::mpsc::Sender<Event>,
        decode: mpsc::Sender<FetchedImage>,
    ) -> Self {
        let leads = Leads::new(settings, Arc::clone(&shared), models);
        let decoders = decode.max_capacity();
        Self {
            store,
            shared,
            publisher,
            decode,
            leads,
            policy: Policy::from(&settings.s3),
            askers: AtomicU64::new(0),
            depth: Depth::new(decoders, settings.s3.concurrency),
            hedge: Hedge::new(settings.s3.hedge_after_ms),
            allowed_buckets: settings.s3.allowed_buckets.clone(),
            max_bytes: settings.limits.max_object_bytes,
            room: Room::new(settings.limits.fetch_bytes),
        }
    }

    /// Runs until its input ends or the run fails.
    pub async fn run(self, mut input: mpsc::Receiver<Referenced>) {
        let fetch = Arc::new(self);
        let prober = Arc::clone(&fetch);
        let mut again = fetch.leads.taken_over();
        tokio::select! {
            () = fetch.all(&mut input, &mut again) => {}
            () = prober.probe() => {}
        }
    }

    /// `again`: those that take over from a leader that fell away.
    async fn all(
        self: Arc<Self>,
        input: &mut mpsc::Receiver<Referenced>,
        again: &mut mpsc::UnboundedReceiver<Referenced>,
    ) {
        let fetch = self;
        let mut tasks = JoinSet::new();
        loop {
            let record = tokio::select! {
                biased;
                Some(record) = again.recv() => record,
                record = input.recv() => match record.map(|record| fetch.leads.join(record)) {
                    None => break,
                    Some(Joined::Leads(record)) => record,
                    Some(Joined::Waits) => continue,
                    Some(Joined::Answered(outcome)) => {
                        let _ = fetch.publisher.send(Event::Finished(vec![outcome]));
                        continue;
                    }
                },
            };
            let place = fetch.depth.place(|| fetch.is_missed()).await;
            while let Some(ended) = tasks.try_join_next() {
                check(&fetch.shared, ended);
            }
            let task = Arc::clone(&fetch);
            tasks.spawn(async move { task.one(record, place).await });
        }
        while let Some(ended) = tasks.join_next().await {
            check(&fetch.shared, ended);
        }
    }

    /// Whether no object that was read waits for a decoder.
    fn is_missed(&self) -> bool {
        self.decode.capacity() == self.decode.max_capacity()
    }

    async fn one(&self, record: Referenced, place: Place) {
        let Referenced { origin, request, lead } = record;
        if !self.shared.is_current(&origin) {
            return;
        }
        let wanted = || self.shared.is_current(&origin) && !self.shared.has_failed();
        let began = Instant::now();
        origin.trace.step("queue", began);
        match self.read(&origin, &request, &lead, wanted).await {
            Ok(((object, taken), attempts)) => {
                origin.trace.fetched(&request, attempts, Ok(object.bytes.len()));
                self.shared.metrics.fetched_bytes.add(object.bytes.len() as u64, &[]);
                let state = ObjectState { etag: object.etag, version_id: object.version_id };
                let bytes = object.bytes;
                let image =
                    FetchedImage { origin, request, object: state, bytes, taken, attempts, lead };
                self.hand_over(image, place, began.elapsed()).await;
            }
            // It was given up because of its owner, not of the object: who waits for it goes on.
            Err(_) if !self.shared.is_current(&origin) => {}
            Err(GaveUp { error, attempts }) => {
                origin.trace.fetched(&request, attempts, Err(&error));
                if error.kind() == ErrorKind::AccessDenied {
                    let _in_trace = origin.in_trace();
                    tracing::warn!(
                        error = error.chain(),
                        "the object store refused access: check the s3 credentials and the \
                         bucket's policy"
                    );
                }
                let outcome = Outcome::failed(origin, Some(request), Stage::Fetch, error, attempts);
                let _ = self.publisher.send(Event::Finished(lead.answer(outcome)));
            }
        }
    }

    async fn hand_over(&self, image: FetchedImage, place: Place, read: Duration) {
        if self.is_missed() {
            place.was_missed();
        }
        let full = Instant::now();
        // The decoders end before the fetchers only when the run has failed.
        let _ = self.decode.send(image).await;
        place.done(read, full.elapsed());
        self.shared.waited(Step::Fetch, Side::Output, full);
        self.shared.metrics.fetch_depth.record(self.depth.open() as u64, &[]);
    }

    async fn read(
        &self,
        origin: &Origin,
        request: &ImageRequest,
        lead: &Lead,
        wanted: impl Fn() -> bool,
    ) -> Result<(Fetched, u32), GaveUp> {
        if let Err(error) = allowed(&self.allowed_buckets, &request.bucket, &request.key) {
            return Err(GaveUp { error, attempts: 0 });
        }
        let asker = self.askers.fetch_add(1, Ordering::Relaxed);
        let read = self.rounds(asker, (origin, request, lead), wanted).await;
        self.shared.breaker.settled(asker);
        read
    }

    /// All its tries, and all of them anew while the store may be at fault.
    async fn rounds(
        &self,
        asker: Asker,
        (origin, request, lead): (&Origin, &ImageRequest, &Lead),
        wanted: impl Fn() -> bool,
    ) -> Result<(Fetched, u32), GaveUp> {
        let breaker = &self.shared.breaker;
        let (mut rounds, mut before) = (Rounds::default(), 0);
        loop {
            if !breaker.closed(&wanted).await {
                let error = Error::new(ErrorKind::FetchUnavailable, "nobody waits for it any more");
                return Err(GaveUp { error, attempts: before });
            }
            let began = Instant::now();
            let gave_up = match self.round(asker, (origin, request, lead), &wanted).await {
                Ok((object, attempts)) => return Ok((object, before + attempts)),
                Err(gave_up) => gave_up,
            };
            before += gave_up.attempts;
            let told = GaveUp { error: gave_up.error, attempts: before };
            if told.error.disposition() != Disposition::Retry || !wanted() {
                return Err(told);
            }
            // Tries that were cut short don't count.
            if breaker.is_open() {
                continue;
            }
            let record = (asker, request.bucket.as_str());
            if breaker.judge(record, began, &mut rounds, &wanted).await != Verdict::Again {
                return Err(told);
            }
            tokio::time::sleep(self.policy.max).await;
        }
    }

    /// Tries as often as the policy allows, while the breaker is closed.
    async fn round(
        &self,
        asker: Asker,
        (origin, request, lead): (&Origin, &ImageRequest, &Lead),
        wanted: impl Fn() -> bool,
    ) -> Result<(Fetched, u32), GaveUp> {
        let breaker = &self.shared.breaker;
        let object = ObjectRef {
            bucket: &request.bucket,
            key: &request.key,
            version_id: request.version_id.as_deref(),
            etag: request.etag.as_deref(),
        };
        retry(
            self.policy,
            || async {
                let started = Instant::now();
                lead.reads(started);
                let ask = || self.store.get_into(object, self.max_bytes, &self.room);
                let read =
                    self.hedge.ask(ask, || self.shared.metrics.fetch_hedges.add(1, &[])).await;
                self.shared.busy(Step::Fetch, started);
                let answer = match &read {
                    Ok(_) => Told::Object,
                    Err(error) if error.disposition() == Disposition::Retry => Told::Nothing,
                    Err(_) => Told::NoObject,
                };
                breaker.note(asker, (&request.bucket, &request.key), answer);
                read
            },
            |error, attempts, pause| {
                self.shared.metrics.fetch_retries.add(1, &[]);
                let _in_trace = origin.in_trace();
                tracing::debug!(error = error.chain(), attempts, ?pause, "fetching again");
                wanted() && !breaker.is_open()
            },
        )
        .await
    }

    /// One probe: an object that was read before, whole, or one that does not exist.
    async fn ask(&self, bucket: &str, number: usize) -> Result<()> {
        let Some(key) = self.shared.breaker.known(bucket, number) else {
            return self.store.probe(bucket).await;
        };
        let object = ObjectRef { bucket, key: &key, version_id: None, etag: None };
        match self.store.get(object, self.max_bytes).await {
            Err(error) if error.disposition() == Disposition::Retry => Err(error),
            _ => Ok(()),
        }
    }

    /// Probes the store whenever the breaker is open, and closes it when it answers again. Runs
    /// without end.
    async fn probe(&self) {
        let Shared { breaker, metrics, .. } = &*self.shared;
        loop {
            metrics.store_down.record(0, &[]);
            let bucket = breaker.opened().await;
            metrics.store_down.record(1, &[]);
            let since = Instant::now();
            let mut pauses = Policy::endless(self.policy.initial, self.policy.max).pauses();
            let (mut answered, mut clean, mut number) = (0, true, 0);
            while answered < PROBES {
                number += 1;
                match self.ask(&bucket, number).await {
                    Ok(()) => answered += 1,
                    Err(error) => {
                        if clean {
                            let error = error.chain();
                            tracing::warn!(error, "the object store is down: references wait");
                        }
                        (answered, clean) = (0, false);
                        tokio::time::sleep(pauses.next().unwrap_or(self.policy.max)).await;
                    }
                }
            }
            breaker.close(clean);
            if !clean {
                tracing::info!(down = ?since.elapsed(), "the object store is up again");
            }
        }
    }
}

/// Whether the list holds the bucket, or one of the folders (`bucket/prefix/`) above the key.
fn allowed(list: &[String], bucket: &str, key: &str) -> Result<()> {
    let holds = |entry: &String| match entry.split_once('/') {
        Some((of, prefix)) => of == bucket && key.starts_with(prefix),
        None => entry == bucket,
    };
    if list.is_empty() || list.iter().any(holds) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::BucketNotAllowed, "the object is not on s3.allowed_buckets")
        .with("bucket", bucket)
        .with("key", key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_buckets_are_read() {
        assert!(allowed(&[], "any", "a.jpg").is_ok());
        let list = ["photos".to_owned(), "lake/public/".to_owned()];
        for (bucket, key) in [("photos", "a.jpg"), ("lake", "public/a.jpg")] {
            assert!(allowed(&list, bucket, key).is_ok(), "{bucket}/{key}");
        }
        for (bucket, key) in [
            ("secrets", "a.jpg"),
            ("photos-old", "a.jpg"),
            ("lake", "a.jpg"),
            ("lake", "public-not/a.jpg"),
            ("lake", "private/public/a.jpg"),
            ("public", "a.jpg"),
        ] {
            let error = allowed(&list, bucket, key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BucketNotAllowed);
            assert!(error.to_string().contains(bucket), "{error}");
        }
    }
}
