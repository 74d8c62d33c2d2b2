//! How letters and references are read and markers written: with a schema registry or without.

use std::borrow::Cow;

use crate::config::Topics;
use crate::error::{Error, ErrorKind, Result};
use crate::message::DeadLetter;
use crate::registry::{Encoder, Kind, Reader, Registry};

pub struct Formats {
    letters: Reader,
    requests: Reader,
    pub markers: Encoder,
}

impl Formats {
    /// Settles the markers' schema, unless none will be written.
    ///
    /// # Errors
    /// As [`Registry::encoder`].
    pub fn connect(topics: &Topics, dry_run: bool) -> Result<Self> {
        let registry = Registry::new(&topics.registry)?;
        let letters = registry.reader(Kind::DeadLetter)?;
        let requests = registry.reader(Kind::Request)?;
        let markers = if dry_run {
            Encoder::Json
        } else {
            letters.encoder(&registry, Kind::Marker, &topics.kafka.dead_letter_topic)?
        };
        Ok(Self { letters, requests, markers })
    }

    /// The letter in a record; None where there is none that can be read.
    ///
    /// # Errors
    /// `ErrorKind::Registry` where the registry does not answer.
    pub fn letter(&self, payload: &[u8]) -> Result<Option<DeadLetter>> {
        let opened = readable(self.letters.open(payload))?;
        Ok(opened.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// A reference's payload without its prefix; None where it can't be read.
    ///
    /// # Errors
    /// `ErrorKind::Registry` where the registry does not answer.
    pub fn request<'p>(&self, payload: &'p [u8]) -> Result<Option<Cow<'p, [u8]>>> {
        readable(self.requests.open(payload))
    }
}

fn readable<T>(opened: Result<T, Error>) -> Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == ErrorKind::InvalidMessage => {
            tracing::warn!(error = error.chain(), "a record can't be read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
