//! How often somebody else has taken this worker's transactional id.
//!
//! Once is what a successor does to a worker that is about to end; it may look like two or three,
//! since `init_transactions` asks again while the broker still ends the worker's transaction, and
//! each time takes the id anew. But two running workers with one id would take it from each other
//! for ever, so the one that has lost it often enough ends, and says why; the other then works on
//! undisturbed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// So many within [`WINDOW`] are no accident.
const LIMIT: usize = 10;
const WINDOW: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub struct Fencings {
    recent: VecDeque<Instant>,
}

impl Fencings {
    /// Notes that another producer has the id now.
    pub fn note(&mut self) {
        self.note_at(Instant::now());
    }

    fn note_at(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|&first| now.duration_since(first) > WINDOW) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        tracing::warn!(fenced = self.recent.len(), "another producer has this transactional id");
    }

    /// # Errors
    /// `ErrorKind::Kafka` when that has happened too often.
    pub fn check(&self, transactional_id: &str) -> Result<()> {
        if self.recent.len() < LIMIT {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Kafka, "another running worker has the same transactional id")
            .with("field", "kafka.transactional_id")
            .with("value", transactional_id)
            .with("allowed", "an id that no other running worker has")
            .with("fenced", self.recent.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frequent_fencing_ends_a_worker() {
        let (mut fencings, start) = (Fencings::default(), Instant::now());
        for number in 0..3 * LIMIT as u32 {
            fencings.note_at(start + WINDOW / 8 * number);
            assert!(fencings.check("me").is_ok(), "{number}");
        }
        let mut often = Fencings::default();
        for number in 0..LIMIT as u32 {
            assert!(often.check("me").is_ok(), "{number}");
            often.note_at(start + WINDOW / 10 * number);
        }
        let told = often.check("me").unwrap_err().to_string();
        assert!(told.contains("kafka.transactional_id") && told.contains("me"), "{told}");
    }
}
