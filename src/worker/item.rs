//! What moves through the worker: one type per state, each stamped with where it came from.
//!
//! [`Referenced`] → [`FetchedImage`] → [`DecodedImage`] → batch → [`Outcome`]. A stage that can't
//! go on with a record sends its [`Failed`] outcome straight to the publisher.

use std::sync::Arc;

use crate::image::DecodedPixels;
use crate::message::ImageRequest;
use crate::s3::Taken;
use crate::worker::coalesce::Lead;
use crate::worker::models::Model;
use crate::worker::outcome::{ObjectState, Origin};

#[derive(Debug)]
pub struct Referenced {
    pub origin: Origin,
    pub request: ImageRequest,
    /// Those that wait for its answer.
    pub lead: Lead,
}

#[derive(Debug)]
pub struct FetchedImage {
    pub origin: Origin,
    pub request: ImageRequest,
    pub object: ObjectState,
    pub bytes: Vec<u8>,
    /// The room that the bytes take up, until they are decoded.
    pub taken: Taken,
    /// Tries that fetching took.
    pub attempts: u32,
    pub lead: Lead,
}

#[derive(Debug)]
pub struct DecodedImage {
    pub origin: Origin,
    pub request: ImageRequest,
    pub object: ObjectState,
    pub pixels: DecodedPixels,
    /// What it is decoded for.
    pub model: Arc<Model>,
    pub lead: Lead,
}
