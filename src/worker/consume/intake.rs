//! Polled messages on their way to being read, in the order in which they were polled.
//!
//! A request in a schema registry's wire format can be read only when its schema is known. Until
//! then it waits here, and everything polled after it waits behind it: a message that the ledger
//! does not know yet holds up no offset, so none behind it may be known either. Whoever polls goes
//! on polling, with all partitions paused.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Result;
use crate::message::{self, Requests};
use crate::registry::Decoder;
use crate::worker::context::Shared;
use crate::worker::source::SourceMessage;

pub struct Intake {
    decoder: Decoder,
    waiting: VecDeque<Arc<SourceMessage>>,
}

impl Intake {
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, waiting: VecDeque::new() }
    }

    pub fn add(&mut self, message: Arc<SourceMessage>) {
        // So that the schemas of all that wait are asked for at once.
        self.decoder.ask_for(payload(&message));
        self.waiting.push_back(message);
    }

    /// The next message that can be read, and what it asks for; stale ones fall away.
    pub fn next(&mut self, shared: &Shared) -> Option<(Arc<SourceMessage>, Result<Requests>)> {
        loop {
            let message = self.waiting.front()?;
            let (partition, epoch) = (message.position.partition, message.epoch);
            if !shared.assignment.is_current(partition, epoch) {
                self.waiting.pop_front();
                continue;
            }
            let parsed = self.decoder.open(payload(message))?.and_then(|opened| {
                message::parse(&opened, &message.original.headers, &message.position)
            });
            return self.waiting.pop_front().map(|message| (message, parsed));
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn payload(message: &SourceMessage) -> &[u8] {
    message.original.payload.as_deref().unwrap_or_default()
}
