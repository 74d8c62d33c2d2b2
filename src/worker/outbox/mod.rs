//! The one way from a stage to the publisher: an item goes in with its answer, and every reference
//! that waits for it gets the same answer.

pub mod event;

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::error::Error;
use crate::message::FailedStage;
use crate::worker::item::Item;
use crate::worker::models::Models;
use crate::worker::outbox::event::Event;
use crate::worker::outcome::{Answer, Failed, Origin, Outcome};

/// Cheap to clone. The publisher ends before the stages only when the run is over, so that what is
/// sent then is of no use to anybody.
#[derive(Clone, Debug)]
pub struct Outbox {
    publisher: Sender<Event>,
    models: Arc<Models>,
}

impl Outbox {
    pub fn new(publisher: Sender<Event>, models: Arc<Models>) -> Self {
        Self { publisher, models }
    }

    /// Ends `item` with `answer`.
    pub fn finish<S>(&self, item: Item<S>, answer: Answer) {
        self.finish_batch([(item, answer)]);
    }

    /// Ends several items at once: the publisher sees all of them or none.
    pub fn finish_batch<S>(&self, batch: impl IntoIterator<Item = (Item<S>, Answer)>) {
        let mut outcomes = Vec::new();
        for (Item { reference, leader, .. }, answer) in batch {
            let followers = leader.answer(&answer, reference.origin.trace.context());
            outcomes.push(reference.answered(answer));
            outcomes.extend(followers);
        }
        self.send(outcomes);
    }

    /// Ends `item` without a caption, before its image was decoded for a model.
    pub fn fail<S>(&self, item: Item<S>, stage: FailedStage, error: Error, attempts: u32) {
        let failed = self.failed(stage, error, attempts);
        self.finish(item, Err(failed));
    }

    /// Ends a reference that another one's answer is good for.
    pub fn finish_answered(&self, outcome: Outcome) {
        self.send(vec![outcome]);
    }

    /// Ends a message that can't be read.
    pub fn reject(&self, origin: Origin, error: Error) {
        let answer = Err(self.failed(FailedStage::Consume, error, 1));
        self.send(vec![Outcome { origin, request: None, answer }]);
    }

    fn failed(&self, stage: FailedStage, error: Error, attempts: u32) -> Arc<Failed> {
        let model = Arc::clone(&self.models.serving().identity);
        Arc::new(Failed { stage, error, attempts, model })
    }

    fn send(&self, outcomes: Vec<Outcome>) {
        let _ = self.publisher.send(Event::Finished(outcomes));
    }
}
