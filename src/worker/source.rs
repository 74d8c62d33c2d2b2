//! A message of the input topic, detached from the consumer's memory.

use std::time::Instant;

use crate::message::{Original, SourcePosition};

/// A message of the input topic, detached from the consumer's memory.
#[derive(Debug)]
pub struct SourceMessage {
    pub position: SourcePosition,
    /// The assignment epoch of its partition when it was polled.
    pub epoch: u64,
    pub original: Original,
    pub polled: Instant,
}
