//! The error type of the crate: a kind, a message, named context and a source. The kind decides
//! what the worker does ([`Disposition`]).
//!
//! Every kind has a stable code. The codes of kinds that dead-letter are a public contract: they
//! are in the records of `images.dlq` and in `schemas/dead-letter.v1.schema.json`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The worker's reaction to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Transient: the same call may succeed later. It is retried with backoff, then dead-lettered.
    Retry,
    /// Permanent for this message, which goes to the dead-letter topic.
    DeadLetter,
    /// Not caused by the message: the process ends.
    Abort,
}

/// The class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The message is not JSON, or does not have one of the three accepted formats.
    InvalidMessage,
    /// The reference is not an `s3://bucket/key` URI, or its bucket or key is not supported.
    UnsupportedUri,
    /// The bucket, or the prefix of the key, is not on the allow-list.
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
    /// The bytes are not in a supported image format.
    NotAnImage,
    /// The bytes begin like an image but can't be decoded to the end.
    CorruptImage,
    /// The image has more pixels than `limits.max_pixels`.
    ImageTooLarge,
    /// Decoding took longer than `limits.decode_timeout_ms`.
    DecodeTimeout,
    /// The object store did not answer within the deadline.
    FetchTimeout,
    /// The object store asked to slow down.
    FetchThrottled,
    /// The object store answered 5xx, or could not be reached.
    FetchUnavailable,
    /// The object store rejects the credentials, or they have expired.
    CredentialsRefused,
    /// The caption does not fit into a message of the output topic.
    RecordTooLarge,
    /// The configuration or the command line is wrong (exit code 2).
    Config,
    /// The model bundle is missing, damaged or of an unknown kind.
    Bundle,
    /// ONNX Runtime is missing or failed.
    Runtime,
    /// Kafka failed and the worker can't recover by itself.
    Kafka,
    /// The schema registry did not answer or refused the request. Never caused by a message.
    Registry,
    /// A file could not be read or written.
    Io,
    /// The command ran, and its result is not as required.
    Incomplete,
    /// A broken invariant, or anything else.
    Internal,
}

impl ErrorKind {
    /// Kinds that can dead-letter, in the order of the pipeline's stages.
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
            Self::Incomplete => "incomplete",
            Self::Internal => "internal",
        }
    }

    /// The worker's reaction.
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
            | Self::Incomplete
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

/// An error with a kind, a one-line message, named context and a source. A clone shares the source.
///
/// `Display` is the message with its context, [`Error::chain`] adds the sources, and `Debug` has
/// every field:
///
/// ```text
/// can't read the file (path: config.json)
/// can't read the file (path: config.json): No such file or directory (os error 2)
/// Error { kind: Io, message: "can't read the file", context: [("path", "config.json")],
///     source: Some(Os { code: 2, .. }), backtrace: None }
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    /// For [`ErrorKind::Internal`], if `RUST_BACKTRACE` asks for it.
    backtrace: Option<Arc<Backtrace>>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let backtrace = (kind == ErrorKind::Internal).then(Backtrace::capture);
        let backtrace =
            backtrace.filter(|taken| taken.status() == BacktraceStatus::Captured).map(Arc::new);
        Self { kind, message: message.into(), context: Vec::new(), source: None, backtrace }
    }

    /// [`ErrorKind::Io`]: the file or directory at `path` can't be written.
    pub fn unwritable(path: &Path, source: io::Error) -> Self {
        Self::new(ErrorKind::Io, "can't write")
            .with_context("path", path.display())
            .with_source(source)
    }

    /// [`ErrorKind::Config`]: the file or directory at `path`, which the command line names, can't be
    /// used.
    pub fn config_at(message: &'static str, path: &Path) -> Self {
        Self::new(ErrorKind::Config, message).with_context("path", path.display())
    }

    /// Adds a named value, for example `("path", "/models/tiny")`.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.context.push((name, value.to_string()));
        self
    }

    /// Sets the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
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

    /// The backtrace of an internal error, if `RUST_BACKTRACE` asks for it.
    pub fn backtrace(&self) -> Option<&Backtrace> {
        self.backtrace.as_deref()
    }

    /// The message with its context and the whole chain of sources, on one line.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_formatted_with_its_context_and_sources() {
        let source = Error::new(ErrorKind::Io, "not found").with_source("gone");
        let error = Error::new(ErrorKind::Bundle, "can't read the file")
            .with_context("path", "config.json")
            .with_context("bytes", 3)
            .with_source(source);
        assert_eq!(error.to_string(), "can't read the file (path: config.json, bytes: 3)");
        assert_eq!(error.chain(), format!("{error}: not found: gone"));
        assert!(format!("{error:?}").starts_with("Error { kind: Bundle, message: \"can't read"));
    }

    #[test]
    fn a_path_error_names_its_path() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::unwritable(Path::new("out/model.onnx"), full());
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Io, 1));
        let expected = format!("can't write (path: out/model.onnx): {}", full());
        assert_eq!(error.chain(), expected);
        let error = Error::config_at("not an ONNX model", Path::new("in/model.onnx"));
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Config, 2));
        assert_eq!(error.to_string(), "not an ONNX model (path: in/model.onnx)");
    }
}
