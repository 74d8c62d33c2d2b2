//! Hedged requests: when a read is late, the same request is sent again, and the first response
//! counts (Dean and Barroso, "The Tail at Scale", 2013).
//!
//! A read is late when it takes longer than 95 % of the recent ones, and longer than [`MIN_DELAY`].
//! The percentile is estimated without a list of times, as in "Frugal Streaming for Estimating
//! Quantiles" (Ma, Muthukrishnan and Sandler, 2013): each read in time lowers the estimate by 1 %,
//! each hedge raises it by 20 %. Hence at most about one read in twenty is hedged, and a store that
//! stops answering gets some twenty hedges until the estimate is at [`MAX_DELAY`], where none is
//! sent.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::error::{Disposition, Result};

/// More than the jitter of a store that is near.
const MIN_DELAY: Duration = Duration::from_millis(200);
/// Half of the default `s3.timeout_ms`.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Requests for one read: a hedge can be late, too.
const MAX_REQUESTS: u32 = 3;

#[derive(Debug)]
pub struct Hedge {
    /// How long a request may take before the next one is sent, in microseconds.
    delay: AtomicU64,
    /// The lower bound of `delay`.
    min: u64,
    max_requests: u32,
}

impl Hedge {
    /// Without `enabled` each read is one request.
    pub fn new(enabled: bool) -> Self {
        Self::starting_at(MIN_DELAY, if enabled { MAX_REQUESTS } else { 1 })
    }

    fn starting_at(min: Duration, max_requests: u32) -> Self {
        let min = micros(min);
        Self { delay: AtomicU64::new(min), min, max_requests }
    }

    /// Sends a request, and another one when the latest is late; calls `on_hedge` for each of the
    /// latter.
    ///
    /// # Errors
    /// A permanent error of any request at once; a transient one when no request is left.
    pub async fn request<T, F>(&self, send: impl Fn() -> F, on_hedge: impl Fn()) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut requests = FuturesUnordered::from_iter([send()]);
        let (mut sent, mut latest) = (1, Instant::now());
        loop {
            let response = requests.select_next_some();
            let response = match timeout_at(latest + self.delay(), response).await {
                Ok(response) => {
                    if sent == 1 {
                        self.lower();
                    }
                    response
                }
                // The hedges of other reads have raised the delay meanwhile.
                Err(_) if latest.elapsed() < self.delay() => continue,
                Err(_) if sent < self.max_requests && self.raise() => {
                    on_hedge();
                    requests.push(send());
                    (sent, latest) = (sent + 1, Instant::now());
                    continue;
                }
                Err(_) => requests.select_next_some().await,
            };
            let is_transient =
                response.as_ref().is_err_and(|error| error.disposition() == Disposition::Retry);
            if !is_transient || requests.is_empty() {
                return response;
            }
        }
    }

    fn delay(&self) -> Duration {
        Duration::from_micros(self.delay.load(Ordering::Relaxed))
    }

    fn lower(&self) {
        let lower = |delay: u64| Some((delay - delay / 100).max(self.min));
        // This never fails: `lower` always returns a value.
        let _ = self.delay.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower);
    }

    /// Whether the delay was below its upper bound.
    fn raise(&self) -> bool {
        let max = micros(MAX_DELAY);
        let raise = |delay: u64| (delay < max).then(|| (delay + delay / 5).min(max));
        self.delay.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise).is_ok()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
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
        /// When all requests that are expected have been sent.
        Overtaken,
        Late,
        Never,
    }
    use When::{AtOnce, Late, Never, Overtaken};

    /// The delay at the start.
    const SHORT: Duration = Duration::from_millis(2);

    type Behavior = (When, std::result::Result<&'static str, ErrorKind>);

    /// One read from a store whose requests end as `behavior` says, in their order: the response,
    /// and the number of requests.
    async fn read(hedge: &Hedge, behavior: &[Behavior]) -> (Result<&'static str>, usize) {
        let (requests, hedges) = (Cell::new(0), Cell::new(0));
        let all_sent = Notify::new();
        let send = || {
            let (when, result) = behavior[requests.get()];
            requests.set(requests.get() + 1);
            if requests.get() == behavior.len() {
                all_sent.notify_one();
            }
            let all_sent = &all_sent;
            async move {
                match when {
                    AtOnce => {}
                    Overtaken => all_sent.notified().await,
                    Late => sleep(hedge.delay() * 2).await,
                    Never => std::future::pending().await,
                }
                result.map_err(|kind| Error::new(kind, "failed"))
            }
        };
        let response = hedge.request(send, || hedges.set(hedges.get() + 1)).await;
        assert_eq!(hedges.get() + 1, requests.get());
        (response, requests.get())
    }

    fn hedge() -> Hedge {
        Hedge::starting_at(SHORT, MAX_REQUESTS)
    }

    #[tokio::test]
    async fn a_second_request_overtakes_a_late_one() {
        let (response, requests) = read(&hedge(), &[(Never, Ok("a")), (AtOnce, Ok("b"))]).await;
        assert_eq!((response.unwrap(), requests), ("b", 2));
    }

    #[tokio::test]
    async fn a_third_request_overtakes_two_late_ones() {
        let behavior = [(Never, Ok("a")), (Never, Ok("b")), (AtOnce, Ok("c"))];
        let (response, requests) = read(&hedge(), &behavior).await;
        assert_eq!((response.unwrap(), requests), ("c", 3));
    }

    #[tokio::test]
    async fn a_fourth_request_is_never_sent() {
        let behavior = [(Never, Ok("a")), (Never, Ok("b")), (Late, Ok("c"))];
        let (response, requests) = read(&hedge(), &behavior).await;
        assert_eq!((response.unwrap(), requests), ("c", 3));
    }

    #[tokio::test]
    async fn the_first_request_may_still_be_the_first_to_end() {
        let (response, requests) = read(&hedge(), &[(Overtaken, Ok("a")), (Never, Ok("b"))]).await;
        assert_eq!((response.unwrap(), requests), ("a", 2));
    }

    #[tokio::test]
    async fn a_read_in_time_is_one_request() {
        let (response, requests) = read(&hedge(), &[(AtOnce, Ok("a"))]).await;
        assert_eq!((response.unwrap(), requests), ("a", 1));
    }

    #[tokio::test]
    async fn without_hedging_a_late_read_is_one_request() {
        let disabled = Hedge::starting_at(SHORT, 1);
        let (response, requests) = read(&disabled, &[(Late, Ok("a"))]).await;
        assert_eq!((response.unwrap(), requests), ("a", 1));
    }

    #[tokio::test]
    async fn a_transient_error_waits_for_the_other_requests() {
        let transient = Err(ErrorKind::FetchUnavailable);
        let (response, _) = read(&hedge(), &[(Late, Ok("a")), (AtOnce, transient)]).await;
        assert_eq!(response.unwrap(), "a");
        let (response, _) = read(&hedge(), &[(Overtaken, transient), (AtOnce, Ok("b"))]).await;
        assert_eq!(response.unwrap(), "b");
        let (response, _) = read(&hedge(), &[(Overtaken, transient), (AtOnce, transient)]).await;
        assert_eq!(response.unwrap_err().kind(), ErrorKind::FetchUnavailable);
    }

    #[tokio::test]
    async fn a_permanent_error_counts_at_once() {
        let missing = Err(ErrorKind::ObjectNotFound);
        let (response, _) = read(&hedge(), &[(Never, Ok("a")), (AtOnce, missing)]).await;
        assert_eq!(response.unwrap_err().kind(), ErrorKind::ObjectNotFound);
    }

    #[test]
    fn one_read_in_twenty_is_hedged() {
        // Reads take 1 to 100 ms, in an order that visits each time equally often.
        let (hedge, mut hedges) = (hedge(), 0);
        for number in 0..10_000 {
            if Duration::from_millis(number * 37 % 100 + 1) > hedge.delay() {
                hedges += u32::from(number >= 1000);
                assert!(hedge.raise());
            } else {
                hedge.lower();
            }
        }
        assert!((400..=500).contains(&hedges), "{hedges} of 9000");
        let delay = hedge.delay();
        assert!((80..=115).contains(&delay.as_millis()), "{delay:?}");
    }

    #[test]
    fn a_store_that_stops_answering_gets_few_hedges() {
        let hedge = Hedge::new(true);
        let hedges = (0..1000).filter(|_| hedge.raise()).count();
        assert!((10..=20).contains(&hedges), "{hedges}");
        assert_eq!(hedge.delay(), MAX_DELAY);
        // Reads in time bring the hedges back.
        (0..400).for_each(|_| hedge.lower());
        assert_eq!(hedge.delay(), MIN_DELAY);
        assert!(hedge.raise());
    }
}
