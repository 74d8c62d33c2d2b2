//! A bound on the bytes of objects that are in memory at once.
//!
//! Whoever wants most is served in its turn, so that an object as large as the whole room gets in
//! too. Counted in KiB, rounded up.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    all: u32,
}

/// A part of the room, free again when this is dropped.
#[derive(Debug)]
pub struct Taken {
    _permit: Option<OwnedSemaphorePermit>,
    kib: u32,
}

impl Room {
    pub fn new(bytes: u64) -> Self {
        let all = kib(bytes).max(1);
        let permits = usize::try_from(all).unwrap_or(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))), all }
    }

    /// Waits for room for so many bytes; what is larger than all of it takes all of it.
    pub async fn take(&self, bytes: u64) -> Taken {
        let kib = kib(bytes).min(self.all);
        // It is never closed.
        let permit = Arc::clone(&self.free).acquire_many_owned(kib).await.ok();
        Taken { _permit: permit, kib }
    }
}

impl Taken {
    pub fn holds(&self, bytes: u64) -> bool {
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
    async fn what_is_let_go_makes_room_in_turn() {
        let room = Room::new(4 * 1024);
        let (first, second) = (room.take(1).await, room.take(2 * 1024).await);
        let mut whole = Box::pin(room.take(4 * 1024));
        assert!((&mut whole).now_or_never().is_none());
        // A small one does not pass the large one that waits.
        let mut small = Box::pin(room.take(1024));
        assert!((&mut small).now_or_never().is_none());
        drop((first, second));
        let whole = (&mut whole).now_or_never().unwrap();
        assert!((&mut small).now_or_never().is_none());
        drop(whole);
        assert!((&mut small).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_larger_than_the_room_takes_all_of_it() {
        let room = Room::new(2 * 1024);
        let taken = room.take(u64::MAX).now_or_never().unwrap();
        assert!(room.take(1).now_or_never().is_none());
        assert!(taken.holds(2 * 1024));
        assert!(!taken.holds(2 * 1024 + 1));
    }
}
