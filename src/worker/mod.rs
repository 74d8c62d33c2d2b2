//! The worker: image references in, captions out, exactly once.

pub mod message;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;
use crate::telemetry::{Health, Metrics};

/// What one run of the worker did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub messages: u64,
    pub captions: u64,
    pub dead_letters: u64,
    pub skipped: u64,
    pub transactions: u64,
    pub elapsed: Duration,
    /// Busy time of each stage, in the order of the flow, summed over its threads.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Runs until `shutdown` is cancelled (then drains) or something can't be recovered from.
pub async fn run(
    _config: Config,
    _engine: Engine,
    _metrics: Arc<Metrics>,
    _health: Arc<Health>,
    _shutdown: CancellationToken,
) -> Result<Report> {
    todo!()
}
