//! The end of a run that can't go on: the first error, for every stage to see.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::telemetry::Health;

#[derive(Debug)]
pub struct Run {
    pub health: Arc<Health>,
    failure: Mutex<Option<Error>>,
    failed: CancellationToken,
}

impl Run {
    pub fn new(health: Arc<Health>) -> Self {
        Self { health, failure: Mutex::new(None), failed: CancellationToken::new() }
    }

    /// Ends the run with `error`; the first one is kept.
    pub fn fail(&self, error: Error) {
        tracing::error!(error = error.chain(), "the worker can't go on");
        self.failure.lock().get_or_insert(error);
        self.health.set_failed();
        self.failed.cancel();
    }

    pub fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    pub fn take_failure(&self) -> Option<Error> {
        self.failure.lock().take()
    }
}
