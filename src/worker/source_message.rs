//! A message of the input topic, detached from the consumer's memory.

use std::time::Instant;

use crate::message::{RawRecord, SourcePosition};
use crate::worker::exactly_once::ledger::MessageId;

#[derive(Debug)]
pub struct SourceMessage {
    pub position: SourcePosition,
    /// The assignment epoch of its partition when it was polled.
    pub epoch: u64,
    pub original: RawRecord,
    pub polled: Instant,
}

impl SourceMessage {
    pub fn id(&self) -> MessageId {
        let SourcePosition { partition, offset, .. } = self.position;
        MessageId { partition, epoch: self.epoch, offset }
    }
}
