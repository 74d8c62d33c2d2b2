//! Retrying with exponential backoff and jitter: the one module that knows `backoff`
//! (unmaintained, RUSTSEC-2025-0012; its replacement would be `backon`).
//!
//! Only errors whose disposition is [`Disposition::Retry`] are retried, with at most
//! [`Policy::max_attempts`] attempts.

use std::future::Future;
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;

use crate::error::{Disposition, Error};

/// The number of attempts, and the pauses between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Attempts including the first one; 0 counts as 1.
    pub max_attempts: u32,
    /// First pause, before jitter.
    pub initial: Duration,
    /// Longest pause, after jitter.
    pub max: Duration,
}

impl Policy {
    /// Unlimited attempts.
    pub fn unlimited(initial: Duration, max: Duration) -> Self {
        Self { max_attempts: u32::MAX, initial, max }
    }

    /// The pauses between the attempts: they double from `initial` to `max`, each with a jitter of
    /// half its length, so that workers that failed together don't retry together.
    pub fn pauses(self) -> Backoff {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(self.initial)
            .with_max_interval(self.max)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_elapsed_time(None)
            .build();
        Backoff { backoff, left: self.max_attempts.saturating_sub(1), max: self.max }
    }
}

/// The remaining pauses; it ends when the attempts are used up.
#[derive(Debug)]
pub struct Backoff {
    backoff: backoff::ExponentialBackoff,
    left: u32,
    max: Duration,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        // `backoff` caps the interval before jitter.
        self.backoff.next_backoff().map(|pause| pause.min(self.max))
    }
}

/// The last error of an operation, and the number of its attempts.
#[derive(Debug)]
pub struct RetryError {
    pub error: Error,
    pub attempts: u32,
}

/// Runs `operation` until it succeeds, fails permanently, or has used up the attempts of `policy`.
/// Returns its value and the number of attempts.
///
/// `should_retry` is called before each pause with the error, the attempts so far and the pause;
/// the error is final if it returns `false`.
///
/// # Errors
/// The last error, with the number of attempts.
pub async fn retry<T, F>(
    policy: Policy,
    mut operation: impl FnMut() -> F,
    mut should_retry: impl FnMut(&Error, u32, Duration) -> bool,
) -> Result<(T, u32), RetryError>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pauses = policy.pauses();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let error = match operation().await {
            Ok(value) => return Ok((value, attempts)),
            Err(error) => error,
        };
        if error.disposition() != Disposition::Retry {
            return Err(RetryError { error, attempts });
        }
        let Some(pause) = pauses.next() else {
            return Err(RetryError { error, attempts });
        };
        if !should_retry(&error, attempts, pause) {
            return Err(RetryError { error, attempts });
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::ErrorKind;

    const POLICY: Policy = Policy {
        max_attempts: 4,
        initial: Duration::from_millis(2),
        max: Duration::from_millis(5),
    };

    async fn fail_times(failures: u32, kind: ErrorKind) -> (Result<u32, (ErrorKind, u32)>, u32) {
        let calls = Cell::new(0);
        let outcome =
            retry(
                POLICY,
                || {
                    calls.set(calls.get() + 1);
                    let call = calls.get();
                    async move {
                        if call > failures { Ok(call) } else { Err(Error::new(kind, "failed")) }
                    }
                },
                |_, _, _| true,
            )
            .await;
        let result = match outcome {
            Ok((value, attempts)) => {
                assert_eq!(value, attempts);
                Ok(value)
            }
            Err(failure) => Err((failure.error.kind(), failure.attempts)),
        };
        (result, calls.get())
    }

    #[tokio::test]
    async fn transient_errors_are_retried() {
        assert_eq!(fail_times(2, ErrorKind::FetchTimeout).await, (Ok(3), 3));
    }

    #[tokio::test]
    async fn attempts_are_counted_and_limited() {
        let expected = (Err((ErrorKind::FetchThrottled, 4)), 4);
        assert_eq!(fail_times(9, ErrorKind::FetchThrottled).await, expected);
    }

    #[tokio::test]
    async fn permanent_errors_are_final() {
        let expected = (Err((ErrorKind::ObjectNotFound, 1)), 1);
        assert_eq!(fail_times(9, ErrorKind::ObjectNotFound).await, expected);
    }

    #[tokio::test]
    async fn the_caller_can_stop_it() {
        let outcome = retry(
            POLICY,
            || async { Err::<(), _>(Error::new(ErrorKind::FetchTimeout, "failed")) },
            |_, attempts, _| attempts < 2,
        )
        .await;
        assert_eq!(outcome.unwrap_err().attempts, 2);
    }

    #[test]
    fn pauses_stay_within_bounds() {
        let policy = Policy {
            max_attempts: 50,
            initial: Duration::from_millis(100),
            max: Duration::from_millis(800),
        };
        let pauses: Vec<Duration> = policy.pauses().collect();
        assert_eq!(pauses.len(), 49);
        assert!(pauses[0] >= Duration::from_millis(50) && pauses[0] <= Duration::from_millis(150));
        assert!(pauses.iter().all(|pause| *pause <= policy.max));
        let late = &pauses[10..];
        assert!(late.iter().all(|pause| *pause >= Duration::from_millis(400)));
        assert!(late.windows(2).any(|pair| pair[0] != pair[1]), "jitter varies the pauses");
    }

    #[test]
    fn one_attempt_has_no_pause() {
        assert_eq!(Policy { max_attempts: 1, ..POLICY }.pauses().count(), 0);
        assert_eq!(Policy { max_attempts: 0, ..POLICY }.pauses().count(), 0);
    }
}
