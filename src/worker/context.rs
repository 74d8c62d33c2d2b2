//! The parts that most stages share. Each stage clones only those it uses.

use std::sync::Arc;

use crate::worker::breaker::Breaker;
use crate::worker::outbox::Outbox;
use crate::worker::ownership::Ownership;
use crate::worker::run::Run;
use crate::worker::telemetry::Observer;

#[derive(Clone, Debug)]
pub struct Context {
    pub ownership: Arc<Ownership>,
    pub run: Arc<Run>,
    pub observer: Arc<Observer>,
    pub outbox: Outbox,
    /// Open while the object store is down.
    pub breaker: Arc<Breaker>,
}
