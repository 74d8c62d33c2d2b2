//! The state that the probes read: is the process alive, and is it ready.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Liveness and readiness of the worker.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    failed: AtomicBool,
    /// Not ready because of something outside that may recover.
    degraded: AtomicBool,
    /// Why the worker is not ready; empty while it starts.
    reason: Mutex<&'static str>,
}

impl Health {
    /// Ready means: the model is loaded and the consumer has joined its group.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Makes the worker not ready for `reason`: "loading the model", "draining".
    pub fn set_not_ready(&self, reason: &'static str) {
        *self.reason.lock() = reason;
        self.degraded.store(false, Ordering::Relaxed);
        self.set_ready(false);
    }

    /// Makes a ready worker not ready until [`Health::set_recovered`].
    pub fn set_degraded(&self, reason: &'static str) {
        if self.is_ready() {
            self.set_not_ready(reason);
            self.degraded.store(true, Ordering::Relaxed);
        }
    }

    /// Makes the worker ready again after [`Health::set_degraded`]; else does nothing.
    pub fn set_recovered(&self) {
        if self.degraded.swap(false, Ordering::Relaxed) {
            self.set_ready(true);
        }
    }

    /// Marks the worker as failed: the process has to be restarted.
    pub fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed)
    }

    pub fn is_live(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Returns why the worker is not ready.
    pub fn reason(&self) -> &'static str {
        if !self.is_live() {
            return "failed";
        }
        match *self.reason.lock() {
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
        health.set_degraded("away");
        assert_eq!((health.is_ready(), health.reason()), (false, "starting"));
        health.set_recovered();
        assert!(!health.is_ready(), "it never was");
        health.set_ready(true);
        health.set_degraded("away");
        assert_eq!((health.is_ready(), health.reason()), (false, "away"));
        health.set_recovered();
        assert!(health.is_ready());
        health.set_degraded("away");
        health.set_not_ready("draining");
        health.set_recovered();
        assert_eq!((health.is_ready(), health.reason()), (false, "draining"));
    }
}
