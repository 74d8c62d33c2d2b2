//! What the probes read: is the process alive, and does it work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What the probes read.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    failed: AtomicBool,
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
        self.set_ready(false);
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
