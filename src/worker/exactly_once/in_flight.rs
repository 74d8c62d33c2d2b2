//! How many references are in flight: polled, and not yet committed or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the references of all live guards.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<AtomicUsize>);

/// References that count as in flight until this is dropped.
#[derive(Debug)]
pub struct InFlightGuard {
    in_flight: InFlight,
    references: usize,
}

impl InFlight {
    /// A guard for a message of `records` records. A message without records counts as one
    /// reference, since it waits for its commit too. Never waits: the consumer looks at
    /// [`InFlight::references`] before it polls.
    pub fn enter(&self, records: usize) -> InFlightGuard {
        let references = records.max(1);
        self.0.fetch_add(references, Ordering::Relaxed);
        InFlightGuard { in_flight: self.clone(), references }
    }

    pub fn references(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.0.fetch_sub(self.references, Ordering::Relaxed);
    }
}
