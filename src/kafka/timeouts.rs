//! The clients' time limits that depend on each other.

use std::time::Duration;

/// Of the consumer's and the producer's time limits those that rest on each other.
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
