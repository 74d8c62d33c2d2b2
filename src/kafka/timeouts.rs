//! The time limits of both clients that depend on each other.

use std::time::Duration;

/// Client time limits, named after their properties.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// `message.timeout.ms`
    pub message: Duration,
    /// `transaction.timeout.ms`
    pub transaction: Duration,
    /// `session.timeout.ms`
    pub session: Duration,
    /// `heartbeat.interval.ms`
    pub heartbeat: Duration,
    /// `max.poll.interval.ms`
    pub max_poll: Duration,
}
