//! The formats of letters, references and markers, with a schema registry or without.

use std::borrow::Cow;

use crate::config::Topics;
use crate::error::{Error, ErrorKind, Result};
use crate::message::DeadLetter;
use crate::registry::{BlockingDecoder, Encoder, Kind, Registry};

pub struct Formats {
    letters: BlockingDecoder,
    requests: BlockingDecoder,
    pub markers: Encoder,
}

impl Formats {
    /// Resolves the markers' schema, unless none will be written.
    ///
    /// # Errors
    /// As [`Registry::encoder`].
    pub fn connect(topics: &Topics, dry_run: bool) -> Result<Self> {
        let registry = Registry::new(&topics.registry)?;
        let letters = registry.blocking_decoder(Kind::DeadLetter)?;
        let requests = registry.blocking_decoder(Kind::Request)?;
        let markers = if dry_run {
            Encoder::Json
        } else {
            letters.encoder(&registry, Kind::Marker, &topics.kafka.dead_letter_topic)?
        };
        Ok(Self { letters, requests, markers })
    }

    /// The letter in a record; None where the record is not one.
    ///
    /// # Errors
    /// `ErrorKind::Registry` where the registry does not answer.
    pub fn parse_letter(&self, payload: &[u8]) -> Result<Option<DeadLetter>> {
        let opened = readable_or_none(self.letters.open(payload))?;
        Ok(opened.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// A reference's payload without its prefix; None where it can't be read.
    ///
    /// # Errors
    /// `ErrorKind::Registry` where the registry does not answer.
    pub fn open_request<'p>(&self, payload: &'p [u8]) -> Result<Option<Cow<'p, [u8]>>> {
        readable_or_none(self.requests.open(payload))
    }
}

fn readable_or_none<T>(opened: Result<T, Error>) -> Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == ErrorKind::InvalidMessage => {
            tracing::warn!(error = error.chain(), "a record can't be read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
