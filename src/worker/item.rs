//! An [`Item`] is one reference on its way through the stages. Its state says how far it has come.
//!
//! `Item<Referenced>` → `Item<Fetched>` → `Item<Decoded>` → batch → caption. A stage ends an item by
//! handing it to the [`Outbox`](crate::worker::outbox::Outbox), or drops it when it is
//! stale.

use std::sync::Arc;

use crate::image::DecodedPixels;
use crate::s3::Reservation;
use crate::worker::coalesce::{Leader, Leading};
use crate::worker::models::Model;
use crate::worker::outcome::{ObjectState, Origin, Reference};

#[derive(Debug)]
pub struct Item<S> {
    pub reference: Reference,
    /// The references that wait for this one's answer.
    pub leader: Leader,
    pub state: S,
}

/// Not read yet.
#[derive(Debug)]
pub struct Referenced;

/// The object was read.
#[derive(Debug)]
pub struct Fetched {
    pub object: ObjectState,
    pub bytes: Vec<u8>,
    /// Memory that the bytes take up until they are decoded.
    pub reserved: Reservation,
    /// How often the object was asked for.
    pub attempts: u32,
}

/// The image is decoded for a model.
#[derive(Debug)]
pub struct Decoded {
    pub object: ObjectState,
    pub pixels: DecodedPixels,
    pub model: Arc<Model>,
}

impl From<Leading> for Item<Referenced> {
    fn from(Leading { reference, leader }: Leading) -> Self {
        Self { reference, leader, state: Referenced }
    }
}

impl<S> Item<S> {
    pub fn origin(&self) -> &Origin {
        &self.reference.origin
    }

    /// The item without its state, and the state.
    pub fn split(self) -> (Item<Referenced>, S) {
        let Self { reference, leader, state } = self;
        (Item { reference, leader, state: Referenced }, state)
    }
}

impl Item<Referenced> {
    pub fn with<S>(self, state: S) -> Item<S> {
        let Self { reference, leader, state: Referenced } = self;
        Item { reference, leader, state }
    }
}
