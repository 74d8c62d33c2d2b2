//! References to bytes: reads each object from the store, many at once.
//!
//! Transient failures are tried again with backoff; then, like permanent ones, they end as dead
//! letters. A fetcher holds its place until the decoders take the image, so what waits in memory
//! is bounded by `s3.concurrency`.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{GaveUp, Policy, retry};
use crate::s3::{Object, ObjectRef, Store};
use crate::worker::flow::{Event, FetchedImage, ObjectState, Outcome, Referenced};
use crate::worker::message::{ImageRequest, Stage};
use crate::worker::shared::{Shared, Step, panicked};

pub struct Fetch {
    pub store: Store,
    pub shared: Arc<Shared>,
    pub publisher: std::sync::mpsc::Sender<Event>,
    pub decode: mpsc::Sender<FetchedImage>,
    policy: Policy,
    concurrency: usize,
    allowed_buckets: Vec<String>,
    max_bytes: u64,
}

impl Fetch {
    pub fn new(
        settings: &config::Config,
        store: Store,
        shared: Arc<Shared>,
        publisher: std::sync::mpsc::Sender<Event>,
        decode: mpsc::Sender<FetchedImage>,
    ) -> Self {
        Self {
            store,
            shared,
            publisher,
            decode,
            policy: Policy::from(&settings.s3),
            concurrency: settings.s3.concurrency.max(1),
            allowed_buckets: settings.s3.allowed_buckets.clone(),
            max_bytes: settings.limits.max_object_bytes,
        }
    }

    /// Runs until its input ends or the run fails.
    pub async fn run(self, mut input: mpsc::Receiver<Referenced>) {
        let fetch = Arc::new(self);
        let places = Arc::new(Semaphore::new(fetch.concurrency));
        let mut tasks = JoinSet::new();
        while let Some(record) = input.recv().await {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            while let Some(ended) = tasks.try_join_next() {
                check(&fetch.shared, ended);
            }
            let task = Arc::clone(&fetch);
            tasks.spawn(async move {
                task.one(record).await;
                drop(place);
            });
        }
        while let Some(ended) = tasks.join_next().await {
            check(&fetch.shared, ended);
        }
    }

    async fn one(&self, record: Referenced) {
        let Referenced { origin, request } = record;
        if !self.shared.is_current(&origin) {
            return;
        }
        let wanted = || self.shared.is_current(&origin) && !self.shared.has_failed();
        match self.read(&request, wanted).await {
            Ok((object, attempts)) => {
                self.shared.metrics.fetched_bytes.add(object.bytes.len() as u64, &[]);
                let state = ObjectState { etag: object.etag, version_id: object.version_id };
                let bytes = object.bytes;
                let image = FetchedImage { origin, request, object: state, bytes, attempts };
                // The decoders end before the fetchers only when the run has failed.
                let _ = self.decode.send(image).await;
            }
            Err(GaveUp { error, attempts }) => {
                if error.kind() == ErrorKind::AccessDenied {
                    tracing::warn!(
                        error = error.chain(),
                        "the object store refused access: check the s3 credentials and the \
                         bucket's policy"
                    );
                }
                let outcome = Outcome::failed(origin, Some(request), Stage::Fetch, error, attempts);
                let _ = self.publisher.send(Event::Finished(vec![outcome]));
            }
        }
    }

    async fn read(
        &self,
        request: &ImageRequest,
        wanted: impl Fn() -> bool,
    ) -> Result<(Object, u32), GaveUp> {
        if let Err(error) = allowed(&self.allowed_buckets, &request.bucket, &request.key) {
            return Err(GaveUp { error, attempts: 0 });
        }
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
                let read = self.store.get(object, self.max_bytes).await;
                self.shared.busy(Step::Fetch, started);
                read
            },
            |error, attempts, pause| {
                self.shared.metrics.fetch_retries.add(1, &[]);
                tracing::debug!(error = error.chain(), attempts, ?pause, "fetching again");
                wanted()
            },
        )
        .await
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

/// A task that panicked would leave its record without an outcome, and the offsets stuck.
pub fn check(shared: &Shared, ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        shared.fail(panicked("fetch or decode"));
    }
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
