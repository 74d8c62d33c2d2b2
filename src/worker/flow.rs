//! What moves through the worker: one type per state, each stamped with where it came from.
//!
//! [`Referenced`] → [`FetchedImage`] → [`DecodedImage`] → batch → [`Outcome`]. A stage that can't
//! go on with a record sends its [`Failed`] outcome straight to the publisher.

use std::sync::Arc;
use std::time::Instant;

use crate::bundle::Identity;
use crate::engine::Caption;
use crate::error::Error;
use crate::image::DecodedPixels;
use crate::s3::Taken;
use crate::worker::lead::Lead;
use crate::worker::message::{ImageRequest, Original, SourcePosition, Stage};
use crate::worker::models::Model;
use crate::worker::spans::Trace;

/// A message of the input topic, detached from the consumer's memory.
#[derive(Debug)]
pub struct SourceMessage {
    pub position: SourcePosition,
    /// The assignment epoch of its partition when it was polled.
    pub epoch: u64,
    pub original: Original,
    pub polled: Instant,
}

/// One record of a message: the unit that is captioned or dead-lettered.
#[derive(Clone, Debug)]
pub struct Origin {
    pub message: Arc<SourceMessage>,
    /// Position among the message's records.
    pub index: usize,
    /// Its spans.
    pub trace: Trace,
}

impl Origin {
    pub fn partition(&self) -> i32 {
        self.message.position.partition
    }

    pub fn offset(&self) -> i64 {
        self.message.position.offset
    }

    pub fn epoch(&self) -> u64 {
        self.message.epoch
    }
}

#[derive(Debug)]
pub struct Referenced {
    pub origin: Origin,
    pub request: ImageRequest,
    /// Those that wait for its answer.
    pub lead: Lead,
}

/// The state of the object that was read.
#[derive(Clone, Debug)]
pub struct ObjectState {
    /// Without quotes.
    pub etag: Option<String>,
    pub version_id: Option<String>,
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

#[derive(Debug)]
pub struct Captioned {
    pub origin: Origin,
    pub request: ImageRequest,
    pub object: ObjectState,
    pub content_type: &'static str,
    /// Pixels, after the EXIF orientation is applied.
    pub width: u32,
    pub height: u32,
    pub caption: Caption,
    /// Whose caption it is.
    pub model: Arc<Identity>,
}

#[derive(Debug)]
pub struct Failed {
    pub origin: Origin,
    /// None when the message could not be read.
    pub request: Option<ImageRequest>,
    pub stage: Stage,
    pub error: Error,
    pub attempts: u32,
}

/// How a record ended.
#[derive(Debug)]
pub enum Outcome {
    Captioned(Box<Captioned>),
    Failed(Box<Failed>),
}

impl Outcome {
    pub fn failed(
        origin: Origin,
        request: Option<ImageRequest>,
        stage: Stage,
        error: Error,
        attempts: u32,
    ) -> Self {
        Self::Failed(Box::new(Failed { origin, request, stage, error, attempts }))
    }

    pub fn origin(&self) -> &Origin {
        match self {
            Self::Captioned(captioned) => &captioned.origin,
            Self::Failed(failed) => &failed.origin,
        }
    }
}

/// What the publisher is told.
///
/// The channel that carries it has no bound of its own: what is tracked in it and not yet
/// committed is bounded by `limits.max_in_flight`, above which the consumer takes nothing in.
#[derive(Debug)]
pub enum Event {
    /// A message was polled; sent before any of its outcomes.
    Tracked {
        partition: i32,
        epoch: u64,
        offset: i64,
        records: usize,
    },
    Finished(Vec<Outcome>),
    /// The partitions are about to go: commit what is finished, forget the rest, then answer.
    Revoked {
        partitions: Vec<i32>,
        done: std::sync::mpsc::SyncSender<()>,
    },
    /// The partitions are gone, or go back: what was tracked of them is stale.
    Lost {
        partitions: Vec<i32>,
    },
    /// Commit what is finished and end.
    Close,
}
