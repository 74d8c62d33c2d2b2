//! How many objects are read at once: as many as keep the decoders supplied, up to
//! `s3.concurrency`.
//!
//! As TCP Vegas paces a connection by what its packets wait in queues (Brakmo and Peterson, 1995),
//! an object that was read tells by how it is taken whether there are too many of its kind: one
//! that waits for a decoder longer than it took to read gives its place up, one that finds the
//! decoders' queue empty has another opened beside it. Where none comes back at all, since each
//! place waits out a pause before another try, places are opened by the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long decoders may be without work before another place is opened.
const PATIENCE: Duration = Duration::from_millis(20);

/// Cheap to clone; all clones are of one depth.
#[derive(Clone, Debug)]
pub struct Depth {
    places: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
    least: usize,
    most: usize,
}

/// One object may be read, until this is dropped.
#[derive(Debug)]
pub struct Place {
    depth: Depth,
    permit: OwnedSemaphorePermit,
}

impl Depth {
    /// Begins, and never falls below, what hands each decoder its next object without a pause.
    pub fn new(decoders: usize, most: usize) -> Self {
        let most = most.max(1);
        let least = (2 * decoders.max(1)).min(most);
        Self {
            places: Arc::new(Semaphore::new(least)),
            open: Arc::new(AtomicUsize::new(least)),
            least,
            most,
        }
    }

    /// Places that are open, taken or not.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Waits for a place; `starving` says whether decoders are without work meanwhile.
    pub async fn place(&self, starving: impl Fn() -> bool) -> Place {
        loop {
            let free = Arc::clone(&self.places).acquire_owned();
            match timeout(PATIENCE, free).await {
                Ok(Ok(permit)) => return Place { depth: self.clone(), permit },
                // It is never closed.
                Ok(Err(_)) => {}
                Err(_) if starving() => self.grow(),
                Err(_) => {}
            }
        }
    }

    fn grow(&self) {
        let more = |open| (open < self.most).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            self.places.add_permits(1);
        }
    }

    fn shrink(&self) -> bool {
        let fewer = |open| (open > self.least).then(|| open - 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}

impl Place {
    /// Another place is opened: the object that was read found the decoders without work.
    pub fn was_missed(&self) {
        self.depth.grow();
    }

    /// Gives the place back, or up if the object waited longer for a decoder than it was read.
    pub fn done(self, read: Duration, waited: Duration) {
        let Self { depth, permit } = self;
        if waited > read && depth.shrink() {
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

    async fn all(depth: &Depth) -> Vec<Place> {
        let mut places = Vec::new();
        while let Some(place) = depth.place(|| false).now_or_never() {
            places.push(place);
        }
        places
    }

    #[tokio::test]
    async fn decoders_without_work_open_places_up_to_the_most() {
        let depth = Depth::new(2, 6);
        let mut places = all(&depth).await;
        assert_eq!(places.len(), 4);
        places.iter().for_each(Place::was_missed);
        assert_eq!(depth.open(), 6);
        places.extend(all(&depth).await);
        assert_eq!(places.len(), 6);
    }

    #[tokio::test]
    async fn objects_that_wait_long_close_them_down_to_the_least() {
        let depth = Depth::new(2, 6);
        all(&depth).await.iter().for_each(Place::was_missed);
        let places = all(&depth).await;
        assert_eq!(places.len(), 6);
        for place in places {
            place.done(SHORT, LONG);
        }
        assert_eq!(all(&depth).await.len(), 4);
        assert_eq!(depth.open(), 4);
    }

    #[tokio::test]
    async fn an_object_that_waits_for_less_than_it_was_read_keeps_its_place() {
        let depth = Depth::new(1, 4);
        let places = all(&depth).await;
        places[0].was_missed();
        for place in places {
            place.done(LONG, SHORT);
        }
        assert_eq!(all(&depth).await.len(), 3);
    }

    /// All places may wait for another try while other objects could be read.
    #[tokio::test]
    async fn places_are_opened_while_none_comes_back() {
        let depth = Depth::new(1, 3);
        let held = all(&depth).await;
        assert_eq!(held.len(), 2);
        let _third = depth.place(|| true).await;
        assert_eq!(depth.open(), 3);
        // There are no more.
        assert!(timeout(PATIENCE * 3, depth.place(|| true)).await.is_err());
        assert_eq!(depth.open(), 3);
    }

    #[tokio::test]
    async fn none_is_opened_while_the_decoders_have_work() {
        let depth = Depth::new(1, 3);
        let _held = all(&depth).await;
        assert!(timeout(PATIENCE * 3, depth.place(|| false)).await.is_err());
        assert_eq!(depth.open(), 2);
    }

    #[tokio::test]
    async fn there_is_at_least_one_place() {
        assert_eq!(all(&Depth::new(0, 0)).await.len(), 1);
        assert_eq!(all(&Depth::new(8, 3)).await.len(), 3);
    }
}
