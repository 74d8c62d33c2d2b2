//! How often another producer has taken this process's transactional id.
//!
//! A successor takes it once from a process that is about to end. That may look like two or three
//! times, since `init_transactions` is repeated while the broker still ends the old transaction,
//! and each repetition takes the id again. But two running processes with one id would take it from
//! each other for ever, so one that has lost it often enough ends and says why; the other then
//! works on undisturbed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const WINDOW: Duration = Duration::from_secs(300);

/// When a fenced producer gives up.
#[derive(Clone, Debug)]
pub struct FencingLimit {
    /// Fencings within five minutes; at least 1.
    pub fencings: usize,
    /// The process ends with this error then.
    pub error: Error,
}

/// The latest fencings.
#[derive(Debug)]
pub struct Fencings {
    limit: FencingLimit,
    recent: VecDeque<Instant>,
}

impl Fencings {
    pub fn new(limit: FencingLimit) -> Self {
        Self { limit, recent: VecDeque::new() }
    }

    /// Counts one: another producer has the id now.
    pub fn add(&mut self) {
        self.add_at(Instant::now());
    }

    fn add_at(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|&first| now.duration_since(first) > WINDOW) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        tracing::warn!(fenced = self.recent.len(), "another producer has this transactional id");
    }

    /// # Errors
    /// The limit's own, once it is reached.
    pub fn check(&self) -> Result<()> {
        if self.recent.len() < self.limit.fencings {
            return Ok(());
        }
        Err(self.limit.error.clone().with_context("fenced", self.recent.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const LIMIT: u32 = 10;

    fn fencings() -> Fencings {
        let error = Error::new(ErrorKind::Kafka, "another one has the id");
        Fencings::new(FencingLimit { fencings: LIMIT as usize, error })
    }

    #[test]
    fn only_frequent_fencing_ends_a_process() {
        let (mut rare, start) = (fencings(), Instant::now());
        for number in 0..3 * LIMIT {
            rare.add_at(start + WINDOW / 8 * number);
            assert!(rare.check().is_ok(), "{number}");
        }
        let mut often = fencings();
        for number in 0..LIMIT {
            assert!(often.check().is_ok(), "{number}");
            often.add_at(start + WINDOW / 10 * number);
        }
        let error = often.check().unwrap_err().to_string();
        assert_eq!(error, "another one has the id (fenced: 10)");
    }
}
