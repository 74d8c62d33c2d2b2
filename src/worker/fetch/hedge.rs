//! Hedged requests: when a request is late a second one is sent, and the first answer is taken (Dean
//! and Barroso, "The Tail at Scale", 2013).
//!
//! A slow store must not get twice the load: at most one request in twenty is hedged, and a few more
//! at once after a time without any.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::time::timeout;

use crate::error::{Disposition, Result};

/// Requests that pay for one hedge.
const COST: u32 = 20;
/// Hedges that can be saved up.
const MAX_SAVED: u32 = 10;

#[derive(Debug)]
pub struct Hedge {
    /// None: never.
    after: Option<Duration>,
    /// Unspent request credits; [`COST`] of them buy one hedge.
    credits: AtomicU32,
}

impl Hedge {
    /// `after_ms`: as `s3.hedge_after_ms`, where 0 is never.
    pub fn new(after_ms: u64) -> Self {
        let after = (after_ms > 0).then(|| Duration::from_millis(after_ms));
        Self { after, credits: AtomicU32::new(COST * MAX_SAVED) }
    }

    /// Sends a request, and a second one when the first is late; `hedged` is called then.
    ///
    /// # Errors
    /// A permanent error of either request at once, a transient one when both have failed.
    pub async fn request<T, F>(&self, send: impl Fn() -> F, hedged: impl FnOnce()) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let Some(after) = self.after else {
            return send().await;
        };
        self.earn();
        let mut first = pin!(send());
        if let Ok(answer) = timeout(after, &mut first).await {
            return answer;
        }
        if !self.spend() {
            return first.await;
        }
        hedged();
        let second = pin!(send());
        let (answer, other) = match select(first, second).await {
            Either::Left((answer, other)) => (answer, Either::Left(other)),
            Either::Right((answer, other)) => (answer, Either::Right(other)),
        };
        match answer {
            Err(error) if error.disposition() == Disposition::Retry => other.await,
            answer => answer,
        }
    }

    fn earn(&self) {
        let more = |credits: u32| (credits < COST * MAX_SAVED).then_some(credits + 1);
        // It is full where this fails.
        let _ = self.credits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn spend(&self) -> bool {
        let less = |credits: u32| credits.checked_sub(COST);
        self.credits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::Notify;
    use tokio::time::sleep;

    use super::*;
    use crate::error::{Error, ErrorKind};

    /// When a request ends.
    #[derive(Clone, Copy)]
    enum When {
        AtOnce,
        /// When there is another one.
        Overtaken,
        Late,
        Never,
    }
    use When::{AtOnce, Late, Never, Overtaken};

    /// Also the first request's patience.
    const SHORT: Duration = Duration::from_millis(2);

    type Told = (When, std::result::Result<&'static str, ErrorKind>);

    /// Asks a store that does `told` one after the other: the answer, and how many requests it
    /// took.
    async fn asked(hedge: &Hedge, told: &[Told]) -> (Result<&'static str>, usize) {
        let (requests, hedges) = (Cell::new(0), Cell::new(0));
        let second = Notify::new();
        let ask = || {
            let (when, ends) = told[requests.get()];
            requests.set(requests.get() + 1);
            if requests.get() == 2 {
                second.notify_one();
            }
            let second = &second;
            async move {
                match when {
                    AtOnce => {}
                    Overtaken => second.notified().await,
                    Late => sleep(SHORT * 2).await,
                    Never => std::future::pending().await,
                }
                ends.map_err(|kind| Error::new(kind, "failed"))
            }
        };
        let answer = hedge.request(ask, || hedges.set(hedges.get() + 1)).await;
        assert_eq!(hedges.get() + 1, requests.get());
        (answer, requests.get())
    }

    fn hedge() -> Hedge {
        Hedge::new(SHORT.as_millis() as u64)
    }

    #[tokio::test]
    async fn the_second_request_overtakes_a_late_first_one() {
        let (answer, requests) = asked(&hedge(), &[(Never, Ok("a")), (AtOnce, Ok("b"))]).await;
        assert_eq!((answer.unwrap(), requests), ("b", 2));
    }

    #[tokio::test]
    async fn a_late_first_one_may_come_first_all_the_same() {
        let (answer, requests) = asked(&hedge(), &[(Overtaken, Ok("a")), (Never, Ok("b"))]).await;
        assert_eq!((answer.unwrap(), requests), ("a", 2));
    }

    #[tokio::test]
    async fn what_is_in_time_is_asked_for_once() {
        let (answer, requests) = asked(&hedge(), &[(AtOnce, Ok("a"))]).await;
        assert_eq!((answer.unwrap(), requests), ("a", 1));
        let (answer, requests) = asked(&Hedge::new(0), &[(Late, Ok("a"))]).await;
        assert_eq!((answer.unwrap(), requests), ("a", 1));
    }

    #[tokio::test]
    async fn a_failure_that_may_pass_leaves_the_other_its_chance() {
        let passes = Err(ErrorKind::FetchUnavailable);
        let (answer, _) = asked(&hedge(), &[(Late, Ok("a")), (AtOnce, passes)]).await;
        assert_eq!(answer.unwrap(), "a");
        let (answer, _) = asked(&hedge(), &[(Overtaken, passes), (Late, Ok("b"))]).await;
        assert_eq!(answer.unwrap(), "b");
        let (answer, _) = asked(&hedge(), &[(Overtaken, passes), (Late, passes)]).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::FetchUnavailable);
    }

    #[tokio::test]
    async fn what_is_said_of_the_object_counts_at_once() {
        let missing = Err(ErrorKind::ObjectNotFound);
        let (answer, _) = asked(&hedge(), &[(Never, Ok("a")), (AtOnce, missing)]).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::ObjectNotFound);
    }

    /// A store of which every request is late.
    #[tokio::test]
    async fn one_request_in_twenty_is_hedged_at_most() {
        let (hedge, mut requests) = (hedge(), 0);
        for _ in 0..300 {
            requests += asked(&hedge, &[(Late, Ok("a")), (Late, Ok("b"))]).await.1;
        }
        let most = (MAX_SAVED + 300 / COST) as usize;
        assert!((300 + most / 2..=300 + most).contains(&requests), "{requests}");
    }
}
