//! The one way from a stage to the publisher: an item goes in with its result, and every reference
//! that waits for it gets the same result.

pub mod event;

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::error::Error;
use crate::message::FailedStage;
use crate::worker::item::Item;
use crate::worker::models::Models;
use crate::worker::outbox::event::PublisherEvent;
use crate::worker::outcome::{CaptionResult, Failed, Origin, Outcome};

/// Cheap to clone. The publisher ends before the stages only when the run is over. Outcomes sent
/// later are not needed.
#[derive(Clone, Debug)]
pub struct Outbox {
    publisher: Sender<PublisherEvent>,
    models: Arc<Models>,
}

impl Outbox {
    pub fn new(publisher: Sender<PublisherEvent>, models: Arc<Models>) -> Self {
        Self { publisher, models }
    }

    /// Ends `item` with `result`.
    pub fn finish<S>(&self, item: Item<S>, result: CaptionResult) {
        self.finish_batch([(item, result)]);
    }

    /// Ends several items at once: the publisher sees all of them or none.
    pub fn finish_batch<S>(&self, batch: impl IntoIterator<Item = (Item<S>, CaptionResult)>) {
        let mut outcomes = Vec::new();
        for (Item { reference, leader, .. }, result) in batch {
            let followers = leader.answer(&result, reference.origin.trace.context());
            outcomes.push(reference.with_result(result));
            outcomes.extend(followers);
        }
        self.send(outcomes);
    }

    /// Ends `item` without a caption, before its image was decoded for a model.
    pub fn fail<S>(&self, item: Item<S>, stage: FailedStage, error: Error, attempts: u32) {
        let failed = self.failed(stage, error, attempts);
        self.finish(item, Err(failed));
    }

    /// Ends a reference that gets another one's result.
    pub fn finish_answered(&self, outcome: Outcome) {
        self.send(vec![outcome]);
    }

    /// Ends a message that can't be read.
    pub fn reject(&self, origin: Origin, error: Error) {
        let result = Err(self.failed(FailedStage::Consume, error, 1));
        self.send(vec![Outcome { origin, request: None, result }]);
    }

    fn failed(&self, stage: FailedStage, error: Error, attempts: u32) -> Arc<Failed> {
        let model = Arc::clone(&self.models.serving().identity);
        Arc::new(Failed { stage, error, attempts, model })
    }

    fn send(&self, outcomes: Vec<Outcome>) {
        let _ = self.publisher.send(PublisherEvent::Finished(outcomes));
    }
}
