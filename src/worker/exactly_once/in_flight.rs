//! How many references are in flight: polled, and not yet committed or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the permits that are held.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<AtomicUsize>);

/// References that count as in flight until this is dropped.
#[derive(Debug)]
pub struct Permit {
    in_flight: InFlight,
    references: usize,
}

impl InFlight {
    /// A permit for a message of `records` records. A message without records counts as one
    /// reference, since it waits for its commit too. Never waits: the consumer looks at
    /// [`InFlight::references`] before it polls.
    pub fn enter(&self, records: usize) -> Permit {
        let references = records.max(1);
        self.0.fetch_add(references, Ordering::Relaxed);
        Permit { in_flight: self.clone(), references }
    }

    pub fn references(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.0.fetch_sub(self.references, Ordering::Relaxed);
    }
}
