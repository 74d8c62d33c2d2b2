//! A limit on the bytes of objects that are in memory at once.
//!
//! First come, first served, so that large requests are not starved. Counted in KiB, rounded up.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Debug)]
pub struct MemoryBudget {
    free: Arc<Semaphore>,
    total_kib: u32,
}

/// A part of the budget, which is free again when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    _permit: Option<OwnedSemaphorePermit>,
    kib: u32,
}

impl MemoryBudget {
    pub fn new(bytes: u64) -> Self {
        let total_kib = kib(bytes).max(1);
        let permits = usize::try_from(total_kib).unwrap_or(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))), total_kib }
    }

    /// Waits until `bytes` are free and reserves them; more than the budget reserves all of it.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let kib = kib(bytes).min(self.total_kib);
        // The semaphore is never closed.
        let permit = Arc::clone(&self.free).acquire_many_owned(kib).await.ok();
        Reservation { _permit: permit, kib }
    }
}

impl Reservation {
    pub fn covers(&self, bytes: u64) -> bool {
        kib(bytes) <= self.kib
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn reservations_are_granted_in_the_order_of_the_requests() {
        let budget = MemoryBudget::new(4 * 1024);
        let (first, second) = (budget.reserve(1).await, budget.reserve(2 * 1024).await);
        let mut whole = Box::pin(budget.reserve(4 * 1024));
        assert!((&mut whole).now_or_never().is_none());
        // A small request does not pass the large one that waits.
        let mut small = Box::pin(budget.reserve(1024));
        assert!((&mut small).now_or_never().is_none());
        drop((first, second));
        let whole = (&mut whole).now_or_never().unwrap();
        assert!((&mut small).now_or_never().is_none());
        drop(whole);
        assert!((&mut small).now_or_never().is_some());
    }

    #[tokio::test]
    async fn more_than_the_budget_reserves_all_of_it() {
        let budget = MemoryBudget::new(2 * 1024);
        let reservation = budget.reserve(u64::MAX).now_or_never().unwrap();
        assert!(budget.reserve(1).now_or_never().is_none());
        assert!(reservation.covers(2 * 1024));
        assert!(!reservation.covers(2 * 1024 + 1));
    }
}
