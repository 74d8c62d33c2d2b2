//! An adaptive concurrency limit. Reads just enough objects in parallel to keep the decoders busy, at
//! most `s3.concurrency`.
//!
//! As TCP Vegas paces a connection by the time that its packets wait in queues (Brakmo and Peterson,
//! 1995), the limit follows the queue of the decoders. It falls when an object waits for a decoder
//! longer than its read took, and rises when an object finds the queue empty. It also rises by the
//! clock while the decoders are idle and no permit comes back, as when each read waits for its next
//! try.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long the decoders may be idle before the limit rises.
const PATIENCE: Duration = Duration::from_millis(20);

/// Cheap to clone; all clones share one limit.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit {
    permits: Arc<Semaphore>,
    limit: Arc<AtomicUsize>,
    min: usize,
    max: usize,
}

/// One object may be read until this is dropped.
#[derive(Debug)]
pub struct FetchPermit {
    limit: ConcurrencyLimit,
    permit: OwnedSemaphorePermit,
}

impl ConcurrencyLimit {
    /// Starts at two reads for each decoder, and never falls below that.
    pub fn new(decoders: usize, max: usize) -> Self {
        let max = max.max(1);
        let min = (2 * decoders.max(1)).min(max);
        Self {
            permits: Arc::new(Semaphore::new(min)),
            limit: Arc::new(AtomicUsize::new(min)),
            min,
            max,
        }
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Waits for a permit; `is_idle` says whether the decoders are idle meanwhile.
    pub async fn acquire(&self, is_idle: impl Fn() -> bool) -> FetchPermit {
        loop {
            let free = Arc::clone(&self.permits).acquire_owned();
            match timeout(PATIENCE, free).await {
                Ok(Ok(permit)) => return FetchPermit { limit: self.clone(), permit },
                // It is never closed.
                Ok(Err(_)) => {}
                Err(_) if is_idle() => self.grow(),
                Err(_) => {}
            }
        }
    }

    fn grow(&self) {
        let more = |limit| (limit < self.max).then_some(limit + 1);
        if self.limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            self.permits.add_permits(1);
        }
    }

    fn shrink(&self) -> bool {
        let fewer = |limit| (limit > self.min).then(|| limit - 1);
        self.limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}

impl FetchPermit {
    /// Raises the limit: the object that was read found the decoders idle.
    pub fn found_idle_decoder(&self) {
        self.limit.grow();
    }

    /// Gives the permit back, or lowers the limit by it where the object waited longer for a decoder
    /// than its read took.
    pub fn release(self, read: Duration, waited: Duration) {
        let Self { limit, permit } = self;
        if waited > read && limit.shrink() {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_millis(9);

    async fn all(limit: &ConcurrencyLimit) -> Vec<FetchPermit> {
        let mut permits = Vec::new();
        while let Some(place) = limit.acquire(|| false).now_or_never() {
            permits.push(place);
        }
        permits
    }

    #[tokio::test]
    async fn idle_decoders_raise_the_limit_up_to_the_maximum() {
        let limit = ConcurrencyLimit::new(2, 6);
        let mut permits = all(&limit).await;
        assert_eq!(permits.len(), 4);
        permits.iter().for_each(FetchPermit::found_idle_decoder);
        assert_eq!(limit.limit(), 6);
        permits.extend(all(&limit).await);
        assert_eq!(permits.len(), 6);
    }

    #[tokio::test]
    async fn objects_that_wait_long_lower_it_down_to_the_minimum() {
        let limit = ConcurrencyLimit::new(2, 6);
        all(&limit).await.iter().for_each(FetchPermit::found_idle_decoder);
        let permits = all(&limit).await;
        assert_eq!(permits.len(), 6);
        for permit in permits {
            permit.release(SHORT, LONG);
        }
        assert_eq!(all(&limit).await.len(), 4);
        assert_eq!(limit.limit(), 4);
    }

    #[tokio::test]
    async fn an_object_that_waits_less_than_its_read_took_keeps_the_limit() {
        let limit = ConcurrencyLimit::new(1, 4);
        let permits = all(&limit).await;
        permits[0].found_idle_decoder();
        for permit in permits {
            permit.release(LONG, SHORT);
        }
        assert_eq!(all(&limit).await.len(), 3);
    }

    /// All permits may wait for another try while other objects could be read.
    #[tokio::test]
    async fn the_limit_rises_while_no_permit_comes_back() {
        let limit = ConcurrencyLimit::new(1, 3);
        let held = all(&limit).await;
        assert_eq!(held.len(), 2);
        let _third = limit.acquire(|| true).await;
        assert_eq!(limit.limit(), 3);
        // There are no more.
        assert!(timeout(PATIENCE * 3, limit.acquire(|| true)).await.is_err());
        assert_eq!(limit.limit(), 3);
    }

    #[tokio::test]
    async fn the_limit_stays_while_the_decoders_have_work() {
        let limit = ConcurrencyLimit::new(1, 3);
        let _held = all(&limit).await;
        assert!(timeout(PATIENCE * 3, limit.acquire(|| false)).await.is_err());
        assert_eq!(limit.limit(), 2);
    }

    #[tokio::test]
    async fn there_is_at_least_one_permit() {
        assert_eq!(all(&ConcurrencyLimit::new(0, 0)).await.len(), 1);
        assert_eq!(all(&ConcurrencyLimit::new(8, 3)).await.len(), 3);
    }
}
