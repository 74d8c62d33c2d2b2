//! What the probes read: is the process alive, and does it work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What the probes read.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    failed: AtomicBool,
    /// Not ready for something outside, which may pass.
    troubled: AtomicBool,
    /// Why the worker is not ready; empty: it starts.
    reason: Mutex<&'static str>,
}

impl Health {
    /// The model is loaded and the consumer has joined its group.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Not ready, and why: "loading the model", "draining".
    pub fn set_not_ready(&self, reason: &'static str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        self.troubled.store(false, Ordering::Relaxed);
        self.set_ready(false);
    }

    /// Not ready until [`Health::set_recovered`], if it was ready.
    pub fn set_troubled(&self, reason: &'static str) {
        if self.is_ready() {
            self.set_not_ready(reason);
            self.troubled.store(true, Ordering::Relaxed);
        }
    }

    /// The trouble has passed; does nothing where there was none.
    pub fn set_recovered(&self) {
        if self.troubled.swap(false, Ordering::Relaxed) {
            self.set_ready(true);
        }
    }

    /// The worker can't go on: the process should be restarted.
    pub fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed)
    }

    pub fn is_live(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Why the worker is not ready.
    pub fn reason(&self) -> &'static str {
        if !self.is_live() {
            return "failed";
        }
        match *self.reason.lock().unwrap_or_else(PoisonError::into_inner) {
            "" => "starting",
            reason => reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_passes_and_an_end_does_not() {
        let health = Health::default();
        health.set_troubled("away");
        assert_eq!((health.is_ready(), health.reason()), (false, "starting"));
        health.set_recovered();
        assert!(!health.is_ready(), "it never was");
        health.set_ready(true);
        health.set_troubled("away");
        assert_eq!((health.is_ready(), health.reason()), (false, "away"));
        health.set_recovered();
        assert!(health.is_ready());
        health.set_troubled("away");
        health.set_not_ready("draining");
        health.set_recovered();
        assert_eq!((health.is_ready(), health.reason()), (false, "draining"));
    }
}
