//! The one error type: what went wrong (`ErrorKind`), with what (`context`), because of what
//! (`source`), and therefore what the worker does next (`Disposition`).
//!
//! Every kind has a stable code. The codes of kinds that dead-letter are a public contract:
//! they stand in `images.dlq` records and in `schemas/dead-letter.v1.schema.json`.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the worker does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Transient: the same call may succeed later. Retried with backoff, then dead-lettered.
    Retry,
    /// Permanent for this message: it goes to the dead-letter topic.
    DeadLetter,
    /// Not the message's fault: the process can't go on with it.
    Abort,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The message is no JSON, or none of the three accepted shapes.
    InvalidMessage,
    /// The reference is no `s3://bucket/key` URI, or names what no request is made for.
    UnsupportedUri,
    /// The bucket, or the key's place in it, is not on the allow-list.
    BucketNotAllowed,
    /// The object, its version or its bucket does not exist.
    ObjectNotFound,
    /// The object store refused access to the object (403).
    AccessDenied,
    /// The object's ETag is not the one the reference asked for.
    EtagMismatch,
    /// The object has no bytes.
    EmptyObject,
    /// The object has more bytes than `limits.max_object_bytes`.
    ObjectTooLarge,
    /// The bytes are in no supported image format.
    NotAnImage,
    /// The bytes begin as an image but can't be decoded to the end.
    CorruptImage,
    /// The image claims more pixels than `limits.max_pixels`.
    ImageTooLarge,
    /// Decoding took longer than `limits.decode_timeout_ms`.
    DecodeTimeout,
    /// The object store did not answer within the deadline.
    FetchTimeout,
    /// The object store asked to slow down.
    FetchThrottled,
    /// The object store answered 5xx, or could not be reached.
    FetchUnavailable,
    /// The object store does not know the credentials, or no longer.
    CredentialsRefused,
    /// The caption does not fit into a message of the output topic.
    RecordTooLarge,
    /// The configuration or the command line is wrong: exit code 2.
    Config,
    /// The model bundle is missing, damaged or of an unknown kind.
    Bundle,
    /// ONNX Runtime is missing or failed.
    Runtime,
    /// Kafka failed in a way the worker can't recover from by itself.
    Kafka,
    /// The schema registry did not answer, or refuses to. Never a message's fault.
    Registry,
    /// A file could not be read or written.
    Io,
    /// Anything else: a broken invariant.
    Internal,
}

impl ErrorKind {
    /// Kinds that can end as a dead letter, in the order of the pipeline's stages.
    pub const DEAD_LETTERS: [ErrorKind; 17] = [
        Self::InvalidMessage,
        Self::UnsupportedUri,
        Self::BucketNotAllowed,
        Self::ObjectNotFound,
        Self::AccessDenied,
        Self::EtagMismatch,
        Self::EmptyObject,
        Self::ObjectTooLarge,
        Self::FetchTimeout,
        Self::FetchThrottled,
        Self::FetchUnavailable,
        Self::CredentialsRefused,
        Self::NotAnImage,
        Self::CorruptImage,
        Self::ImageTooLarge,
        Self::DecodeTimeout,
        Self::RecordTooLarge,
    ];

    /// Stable machine-readable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidMessage => "invalid_message",
            Self::UnsupportedUri => "unsupported_uri",
            Self::BucketNotAllowed => "bucket_not_allowed",
            Self::ObjectNotFound => "object_not_found",
            Self::AccessDenied => "access_denied",
            Self::EtagMismatch => "etag_mismatch",
            Self::EmptyObject => "empty_object",
            Self::ObjectTooLarge => "object_too_large",
            Self::NotAnImage => "not_an_image",
            Self::CorruptImage => "corrupt_image",
            Self::ImageTooLarge => "image_too_large",
            Self::DecodeTimeout => "decode_timeout",
            Self::FetchTimeout => "fetch_timeout",
            Self::FetchThrottled => "fetch_throttled",
            Self::FetchUnavailable => "fetch_unavailable",
            Self::CredentialsRefused => "credentials_refused",
            Self::RecordTooLarge => "record_too_large",
            Self::Config => "config",
            Self::Bundle => "bundle",
            Self::Runtime => "runtime",
            Self::Kafka => "kafka",
            Self::Registry => "registry",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }

    /// What the worker does about it.
    pub const fn disposition(self) -> Disposition {
        match self {
            Self::FetchTimeout
            | Self::FetchThrottled
            | Self::FetchUnavailable
            | Self::CredentialsRefused
            | Self::Registry => Disposition::Retry,
            Self::Config
            | Self::Bundle
            | Self::Runtime
            | Self::Kafka
            | Self::Io
            | Self::Internal => Disposition::Abort,
            _ => Disposition::DeadLetter,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

/// An error with its kind, a one-line message, named context and a source. A clone shares the
/// source.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), context: Vec::new(), source: None }
    }

    /// Adds a named value, such as `("path", "/models/tiny")`.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.context.push((name, value.to_string()));
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn disposition(&self) -> Disposition {
        self.kind.disposition()
    }

    /// Process exit code: 2 for a wrong configuration, 1 for a failure at run time.
    pub fn exit_code(&self) -> u8 {
        if self.kind == ErrorKind::Config { 2 } else { 1 }
    }

    /// The message with its context and the whole chain of causes, on one line.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if self.context.is_empty() {
            return Ok(());
        }
        formatter.write_str(" (")?;
        for (index, (name, value)) in self.context.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{name}: {value}")?;
        }
        formatter.write_str(")")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
