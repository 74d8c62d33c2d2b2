//! Tells an outage of the object store from a bad object: a circuit breaker (Nygard, *Release
//! It!*, 2007) that opens for the store, never for one object.
//!
//! An object that fails transiently until its tries are used up proves nothing by itself. Others
//! that were read meanwhile do: then the store is up, and the object is dead-lettered. Where
//! nobody vouches for the store, the breaker opens: partitions pause, references are held, and
//! only probes are sent, until several in a row are answered. A held reference then gets all its
//! tries anew. One that fails again between two clean series of probes is the object's own fault.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Answers that are remembered.
const WINDOW: usize = 64;
/// Of which age at most.
const RECENT: Duration = Duration::from_secs(30);
/// So many recent answers must be there before failures alone open the breaker.
const ENOUGH: usize = 16;
/// Others' answers that it takes to vouch for the store.
const WITNESSES: usize = 4;

/// The record that an answer was for, told apart by any number.
pub type Asker = u64;

/// Shared by the fetchers, their prober and the consumer.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    /// What each change of `state` is told by.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<Answer>,
    /// The bucket to probe, while open.
    open: Option<String>,
    /// Whether the last series of probes succeeded without a failure before it.
    clean: bool,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    asker: Asker,
    at: Instant,
    /// An answer about the object, even if it is "no such key".
    definite: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Breaker {
    /// Notes one answer of the store. Opens the breaker when nearly all recent ones failed.
    pub fn note(&self, asker: Asker, bucket: &str, definite: bool) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.open.is_some() {
            return;
        }
        state.answers.push_back(Answer { asker, at: now, definite });
        if state.answers.len() > WINDOW {
            state.answers.pop_front();
        }
        let recent = || state.answers.iter().filter(|answer| now - answer.at <= RECENT);
        let (all, failed) = (recent().count(), recent().filter(|answer| !answer.definite).count());
        if all >= ENOUGH && failed * 10 >= all * 9 {
            self.open(&mut state, bucket);
        }
    }

    /// Whether others' answers since `began` show that the store is up.
    pub fn vouches(&self, asker: Asker, began: Instant) -> bool {
        let state = self.lock();
        let others = || state.answers.iter().filter(|a| a.asker != asker && a.at >= began);
        let definite = others().filter(|answer| answer.definite).count();
        definite >= WITNESSES && definite * 2 >= others().count()
    }

    pub fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }

    /// Waits while the breaker is open; `false` when `wanted` says no meanwhile.
    pub async fn closed(&self, wanted: impl Fn() -> bool) -> bool {
        let mut changes = self.changed.subscribe();
        while self.is_open() {
            if !wanted() {
                return false;
            }
            // Asked again from time to time: nothing tells that work has become stale.
            let _ = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await;
        }
        wanted()
    }

    /// Opens the breaker, if it is closed, and waits for the probes' word: whether the store is up
    /// without a doubt. None when `wanted` says no meanwhile.
    pub async fn ask(&self, bucket: &str, wanted: impl Fn() -> bool) -> Option<bool> {
        {
            let mut state = self.lock();
            if state.open.is_none() {
                self.open(&mut state, bucket);
            }
        }
        self.closed(wanted).await.then(|| self.lock().clean)
    }

    /// Waits until there is a bucket to probe.
    pub async fn opened(&self) -> String {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(bucket) = self.lock().open.clone() {
                return bucket;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// The probes were answered; `clean` says whether all of them were.
    pub fn close(&self, clean: bool) {
        let mut state = self.lock();
        state.open = None;
        state.clean = clean;
        self.changed.send_replace(());
    }

    fn open(&self, state: &mut State, bucket: &str) {
        state.open = Some(bucket.to_owned());
        // What was answered before says nothing about what comes after.
        state.answers.clear();
        self.changed.send_replace(());
    }

    /// No method panics while it holds the lock, so a poisoned one guards sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_all_must_fail_before_it_opens() {
        let breaker = Breaker::default();
        for asker in 0..40 {
            breaker.note(asker, "photos", asker % 4 == 0);
            assert!(!breaker.is_open(), "a quarter is answered");
        }
        let breaker = Breaker::default();
        for asker in 0..ENOUGH as u64 {
            assert!(!breaker.is_open(), "{asker} answers are not enough");
            breaker.note(asker, "photos", false);
        }
        assert!(breaker.is_open());
        breaker.close(true);
        assert!(!breaker.is_open());
    }

    #[test]
    fn others_vouch_for_the_store() {
        let breaker = Breaker::default();
        let before = Instant::now();
        for asker in 1..=3 {
            breaker.note(asker, "photos", true);
        }
        breaker.note(9, "photos", true);
        assert!(!breaker.vouches(9, before), "nobody vouches for itself");
        breaker.note(4, "photos", true);
        assert!(breaker.vouches(9, before));
        std::thread::sleep(Duration::from_millis(2));
        assert!(!breaker.vouches(9, Instant::now()), "what was before says nothing");
        for asker in 10..15 {
            breaker.note(asker, "photos", false);
        }
        assert!(!breaker.vouches(9, before), "more fail than not");
    }

    #[tokio::test]
    async fn references_are_held_until_the_probes_are_answered() {
        let breaker = Breaker::default();
        let asking = breaker.ask("photos", || true);
        let probing = async {
            assert_eq!(breaker.opened().await, "photos");
            tokio::time::sleep(Duration::from_millis(20)).await;
            breaker.close(false);
        };
        let (clean, ()) = tokio::join!(asking, probing);
        assert_eq!(clean, Some(false));
        assert!(breaker.closed(|| true).await);
    }

    #[tokio::test]
    async fn what_has_become_stale_is_not_held() {
        let breaker = Breaker::default();
        assert_eq!(breaker.ask("photos", || false).await, None);
        assert!(!breaker.closed(|| false).await);
    }
}
