//! Polled messages that wait to be read, in the order in which they were polled.
//!
//! A request in a schema registry's wire format can be read only when its schema is known. Until
//! then it waits here, and every message polled after it waits behind it: the ledger does not know
//! a message that waits, so none behind it may be known either. The consumer polls on meanwhile, with
//! all partitions paused.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Result;
use crate::message::{self, Requests};
use crate::registry::Decoder;
use crate::worker::ownership::Ownership;
use crate::worker::source_message::SourceMessage;

pub struct AwaitingSchema {
    decoder: Decoder,
    messages: VecDeque<Arc<SourceMessage>>,
}

impl AwaitingSchema {
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, messages: VecDeque::new() }
    }

    pub fn push(&mut self, message: Arc<SourceMessage>) {
        // Requests the schemas of all messages that wait at once.
        self.decoder.request_schema(payload(&message));
        self.messages.push_back(message);
    }

    /// The next message that can be read, and its requests; stale messages are dropped.
    pub fn pop(&mut self, ownership: &Ownership) -> Option<(Arc<SourceMessage>, Result<Requests>)> {
        loop {
            let message = self.messages.front()?;
            if !ownership.is_current(message.position.partition, message.epoch) {
                self.messages.pop_front();
                continue;
            }
            let parsed = self.decoder.open(payload(message))?.and_then(|opened| {
                message::parse(&opened, &message.original.headers, &message.position)
            });
            return self.messages.pop_front().map(|message| (message, parsed));
        }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }
}

fn payload(message: &SourceMessage) -> &[u8] {
    message.original.payload.as_deref().unwrap_or_default()
}
