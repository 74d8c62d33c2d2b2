//! How a reference ended, and where it came from.

use std::sync::Arc;

use opentelemetry::ContextGuard;

use crate::engine::Caption;
use crate::error::Error;
use crate::message::{Identity, ImageRequest, Stage};
use crate::worker::source::SourceMessage;
use crate::worker::telemetry::spans::{Trace, attach};

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

    /// What is logged until the guard is dropped belongs to this reference's trace.
    pub fn in_trace(&self) -> ContextGuard {
        attach(self.trace.log_context(&self.message.original.headers))
    }
}

/// The state of the object that was read.
#[derive(Clone, Debug)]
pub struct ObjectState {
    /// Without quotes.
    pub etag: Option<String>,
    pub version_id: Option<String>,
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
