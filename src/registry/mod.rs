//! The schema registry: how captions and dead letters are written, and requests read that stand in
//! Confluent's wire format.
//!
//! `client` speaks the API, `wire` the prefix, `avro` the records; `schemas` has what is
//! registered. An [`Encoder`] is made at the start, when the schema's id is found ([`settle`]), and
//! never asks again. A [`Decoder`] asks for each id that it has not seen, and a [`Reader`] waits
//! for the answer. Without `registry.url` there is plain JSON alone.
//!
//! The crate `schema_registry_converter` has the wire format too, but no compatibility checks, and
//! it keeps failed look-ups until it is told to forget them.
//!
//! The one thing to know: a registry that does not answer is no message's fault. Whoever reads
//! waits for it, and nothing is dead-lettered meanwhile.

mod avro;
mod client;
mod decoder;
mod schemas;
mod settle;
mod wire;

use std::sync::Arc;

use serde::Serialize;

pub use decoder::{Decoder, Reader};
pub use schemas::Kind;

use crate::config::{self, Format};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::client::Client;

/// The registry that is configured, if one is.
#[derive(Clone, Debug)]
pub struct Registry {
    settings: config::Registry,
    client: Option<Arc<Client>>,
}

impl Registry {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// `ErrorKind::Config` for settings that can't be used.
    pub fn new(settings: &config::Registry) -> Result<Self> {
        let client = settings.url.as_deref().map(|url| Client::new(settings, url)).transpose()?;
        Ok(Self { settings: settings.clone(), client: client.map(Arc::new) })
    }

    /// How records of this kind are written to `topic`: its schema is looked up, checked and
    /// registered as configured.
    ///
    /// # Errors
    /// `ErrorKind::Config` where the schema is missing or incompatible; `ErrorKind::Registry` where
    /// the registry does not answer for a while.
    pub async fn encoder(&self, kind: Kind, topic: &str) -> Result<Encoder> {
        let format = self.settings.format;
        let (Some(client), Some(schema)) = (&self.client, kind.schema(format)) else {
            return Ok(Encoder::Json);
        };
        let subject = kind.subject(self.settings.subject_name_strategy, topic);
        let wanted = settle::Wanted { subject: &subject, schema: &schema, kind };
        let id = settle::settle(client, &wanted, self.settings.auto_register).await?;
        Ok(match format {
            Format::Avro => Encoder::Avro { id, kind },
            Format::Json | Format::JsonSchema => Encoder::JsonSchema { id },
        })
    }

    /// How records of this kind are read.
    pub fn decoder(&self, kind: Kind, tasks: tokio::runtime::Handle) -> Decoder {
        Decoder::new(self.client.clone(), kind, tasks)
    }

    /// The same for a thread that may wait.
    ///
    /// # Errors
    /// `ErrorKind::Io` where no runtime can be had.
    pub fn reader(&self, kind: Kind) -> Result<Reader> {
        Reader::new(self, kind)
    }
}

/// Writes records of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub enum Encoder {
    /// Without a prefix.
    #[default]
    Json,
    JsonSchema {
        id: u32,
    },
    Avro {
        id: u32,
        kind: Kind,
    },
}

impl Encoder {
    /// # Errors
    /// `ErrorKind::Internal` for a record that is not of this kind.
    pub fn encode<T: Serialize>(&self, record: &T) -> Result<Vec<u8>> {
        let failed = |error| Error::new(ErrorKind::Internal, "can't write a record").because(error);
        match self {
            Self::Json => serde_json::to_vec(record).map_err(failed),
            Self::JsonSchema { id } => {
                Ok(wire::join(*id, &serde_json::to_vec(record).map_err(failed)?))
            }
            Self::Avro { id, kind } => {
                let json = serde_json::to_value(record).map_err(failed)?;
                Ok(wire::join(*id, &avro::encode(&json, kind.avro())?))
            }
        }
    }
}
