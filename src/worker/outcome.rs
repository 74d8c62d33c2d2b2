//! A reference to an image, and its outcome: a caption, or the reason for having none.

use std::sync::Arc;

use opentelemetry::ContextGuard;

use crate::error::Error;
use crate::message::{FailedStage, Identity, ImageRequest};
use crate::worker::exactly_once::ledger::MessageId;
use crate::worker::ownership::Ownership;
use crate::worker::source_message::SourceMessage;
use crate::worker::telemetry::spans::{Trace, attach};

/// Where a reference comes from: one record of a message.
#[derive(Clone, Debug)]
pub struct Origin {
    pub message: Arc<SourceMessage>,
    /// Position among the message's records.
    pub index: usize,
    /// The reference's spans.
    pub trace: Trace,
}

impl Origin {
    pub fn message_id(&self) -> MessageId {
        self.message.id()
    }

    /// Whether its work still counts; every hand-over asks.
    pub fn is_current(&self, ownership: &Ownership) -> bool {
        let MessageId { partition, epoch, .. } = self.message_id();
        ownership.is_current(partition, epoch)
    }

    /// Log lines belong to this reference's trace until the guard is dropped.
    pub fn in_trace(&self) -> ContextGuard {
        attach(self.trace.log_context(&self.message.original.headers))
    }
}

/// An image to caption, and where the request comes from.
#[derive(Debug)]
pub struct Reference {
    pub origin: Origin,
    pub request: ImageRequest,
}

/// The state of the object that was read.
#[derive(Clone, Debug)]
pub struct ObjectState {
    /// Without quotes.
    pub etag: Option<String>,
    pub version_id: Option<String>,
}

/// A caption. References to one object share it.
#[derive(Debug)]
pub struct Captioned {
    pub object: ObjectState,
    pub content_type: &'static str,
    /// Pixels, after the EXIF orientation is applied.
    pub width: u32,
    pub height: u32,
    pub text: String,
    /// Mean log-probability of a token.
    pub score: f32,
    /// Unit length, `[embedding_dim]`; None unless `model.embeddings` is set.
    pub embedding: Option<Vec<f32>>,
    /// The model that made the caption.
    pub model: Arc<Identity>,
}

/// Why a reference has no caption.
#[derive(Debug)]
pub struct Failed {
    pub stage: FailedStage,
    pub error: Error,
    /// How often the stage tried.
    pub attempts: u32,
    /// The model that the image was decoded for, or the serving one when it was not decoded.
    pub model: Arc<Identity>,
}

/// The result for a reference: a caption or a failure. Cheap to clone.
pub type CaptionResult = Result<Arc<Captioned>, Arc<Failed>>;

/// A result, and the reference that gets it.
#[derive(Debug)]
pub struct Outcome {
    pub origin: Origin,
    /// None when the message could not be read.
    pub request: Option<ImageRequest>,
    pub result: CaptionResult,
}

impl Reference {
    pub fn with_result(self, result: CaptionResult) -> Outcome {
        Outcome { origin: self.origin, request: Some(self.request), result }
    }
}
