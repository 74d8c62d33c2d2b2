//! One object from the store, as often as it takes.
//!
//! ```text
//! read ─ retry cycles, while the breaker is closed ─ retry with backoff ─ hedge ─ GET
//! ```
//! A transient failure is retried with backoff. When the tries are used up the breaker says whether
//! the object or the store is at fault: the object's reference is dead-lettered, or it gets all its
//! tries anew when the store is up again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::config::Config;
use crate::error::{Disposition, Error, ErrorKind, Result};
use crate::retry::{Policy, RetryError, retry};
use crate::s3::{MemoryBudget, Object, ObjectRef, Reservation, Store};
use crate::worker::breaker::{Breaker, ExhaustedRead, RequestId, Response, RetryCycles, Verdict};
use crate::worker::context::Context;
use crate::worker::fetch::hedge::Hedge;
use crate::worker::item::{Item, Referenced};
use crate::worker::outcome::Reference;
use crate::worker::telemetry::Observer;
use crate::worker::telemetry::stage::Stage;

pub struct ObjectReader {
    pub(super) store: Store,
    pub(super) breaker: Arc<Breaker>,
    pub(super) observer: Arc<Observer>,
    pub(super) policy: Policy,
    pub(super) max_bytes: u64,
    hedge: Hedge,
    memory: MemoryBudget,
    allowed_buckets: Vec<String>,
    /// References read so far.
    requests: AtomicU64,
}

/// An object that was read.
pub struct Read {
    pub object: Object,
    /// Memory that its bytes take up.
    pub reserved: Reservation,
    pub attempts: u32,
}

impl ObjectReader {
    pub fn new(config: &Config, context: &Context, store: Store) -> Self {
        Self {
            store,
            breaker: Arc::clone(&context.breaker),
            observer: Arc::clone(&context.observer),
            policy: Policy::from(&config.s3),
            max_bytes: config.limits.max_object_bytes,
            hedge: Hedge::new(config.s3.hedging),
            memory: MemoryBudget::new(config.limits.max_buffered_bytes),
            allowed_buckets: config.s3.allowed_buckets.clone(),
            requests: AtomicU64::new(0),
        }
    }

    /// Reads the object of `item`, or gives up when the object is at fault or not wanted any more.
    pub async fn read(
        &self,
        item: &Item<Referenced>,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Read, RetryError> {
        let request = &item.reference.request;
        if let Err(error) = check_allowed(&self.allowed_buckets, &request.bucket, &request.key) {
            return Err(RetryError { error, attempts: 0 });
        }
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let read = self.retry_cycles(id, item, is_wanted).await;
        self.breaker.resolved(id);
        read
    }

    /// All tries, and all of them anew while the store may be at fault.
    async fn retry_cycles(
        &self,
        id: RequestId,
        item: &Item<Referenced>,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Read, RetryError> {
        let bucket = item.reference.request.bucket.as_str();
        let (mut cycles, mut before) = (RetryCycles::default(), 0);
        loop {
            if !self.breaker.closed(&is_wanted).await {
                let error = Error::new(ErrorKind::FetchUnavailable, "nobody waits for it any more");
                return Err(RetryError { error, attempts: before });
            }
            let began = Instant::now();
            let RetryError { error, attempts } = match self.retry(id, item, &is_wanted).await {
                Ok(read) => return Ok(Read { attempts: before + read.attempts, ..read }),
                Err(failure) => failure,
            };
            before += attempts;
            let is_final = error.disposition() != Disposition::Retry || !is_wanted();
            let failure = RetryError { error, attempts: before };
            if is_final {
                return Err(failure);
            }
            // Tries that were cut short don't count.
            if self.breaker.is_open() {
                continue;
            }
            let exhausted = ExhaustedRead { id, bucket, began };
            if self.breaker.judge(exhausted, &mut cycles, &is_wanted).await != Verdict::Again {
                return Err(failure);
            }
            tokio::time::sleep(self.policy.max).await;
        }
    }

    /// Tries as often as the policy allows, while the breaker is closed.
    async fn retry(
        &self,
        id: RequestId,
        item: &Item<Referenced>,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Read, RetryError> {
        let origin = item.origin();
        let (read, attempts) = retry(
            self.policy,
            || self.attempt(id, item),
            |error, attempts, pause| {
                self.observer.metrics.fetch_retries.add(1, &[]);
                let _in_trace = origin.in_trace();
                tracing::debug!(error = error.chain(), attempts, ?pause, "fetching again");
                is_wanted() && !self.breaker.is_open()
            },
        )
        .await?;
        let (object, reserved) = read;
        Ok(Read { object, reserved, attempts })
    }

    /// One try, hedged.
    async fn attempt(
        &self,
        id: RequestId,
        item: &Item<Referenced>,
    ) -> Result<(Object, Reservation)> {
        let Reference { request, .. } = &item.reference;
        let object = ObjectRef {
            bucket: &request.bucket,
            key: &request.key,
            version_id: request.version_id.as_deref(),
            etag: request.etag.as_deref(),
        };
        let started = Instant::now();
        item.leader.reads(started);
        let get = || self.store.get_within(object, self.max_bytes, &self.memory);
        let on_hedge = || self.observer.metrics.fetch_hedges.add(1, &[]);
        let read = self.hedge.request(get, on_hedge).await;
        self.observer.busy(Stage::Fetch, started);
        let response = match &read {
            Ok(_) => Response::Object,
            Err(error) if error.disposition() == Disposition::Retry => Response::Unavailable,
            Err(_) => Response::NoObject,
        };
        self.breaker.record(id, (&request.bucket, &request.key), response);
        read
    }
}

/// Whether the list holds the bucket, or one of the folders (`bucket/prefix/`) above the key.
fn check_allowed(list: &[String], bucket: &str, key: &str) -> Result<()> {
    let holds = |entry: &String| match entry.split_once('/') {
        Some((of, prefix)) => of == bucket && key.starts_with(prefix),
        None => entry == bucket,
    };
    if list.is_empty() || list.iter().any(holds) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::BucketNotAllowed, "the object is not on s3.allowed_buckets")
        .with_context("bucket", bucket)
        .with_context("key", key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_buckets_are_read() {
        assert!(check_allowed(&[], "any", "a.jpg").is_ok());
        let list = ["photos".to_owned(), "lake/public/".to_owned()];
        for (bucket, key) in [("photos", "a.jpg"), ("lake", "public/a.jpg")] {
            assert!(check_allowed(&list, bucket, key).is_ok(), "{bucket}/{key}");
        }
        for (bucket, key) in [
            ("secrets", "a.jpg"),
            ("photos-old", "a.jpg"),
            ("lake", "a.jpg"),
            ("lake", "public-not/a.jpg"),
            ("lake", "private/public/a.jpg"),
            ("public", "a.jpg"),
        ] {
            let error = check_allowed(&list, bucket, key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BucketNotAllowed);
            assert!(error.to_string().contains(bucket), "{error}");
        }
    }
}
