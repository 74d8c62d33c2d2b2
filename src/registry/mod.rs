//! The schema registry: encodes captions and dead letters, and decodes requests in Confluent's wire
//! format.
//!
//! `client` calls the API, `wire` frames records, `avro` converts them, and `schemas` holds the
//! schemas to register. An [`Encoder`] is made at the start, when the schema's id is resolved
//! ([`resolve`]), and sends no request later. A [`Decoder`] requests each id that it has not seen,
//! and a [`BlockingDecoder`] waits for the answer. Without `registry.url` all records are plain JSON.
//!
//! The crate `schema_registry_converter` has the wire format too, but no compatibility checks, and
//! it keeps failed look-ups until the caller clears them.
//!
//! The one thing to know: a silent registry is not a message's fault. Readers wait for it, and
//! nothing is dead-lettered meanwhile.

mod avro;
mod client;
mod decoder;
mod resolve;
mod schemas;
mod wire;

use std::sync::Arc;

use serde::Serialize;

pub use decoder::{BlockingDecoder, Decoder};
pub use schemas::Kind;

use crate::config::{self, Format};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::client::Client;

/// The configured registry, if there is one.
#[derive(Clone, Debug)]
pub struct Registry {
    settings: config::Registry,
    client: Option<Arc<Client>>,
}

impl Registry {
    /// Sends no request yet.
    ///
    /// # Errors
    /// `ErrorKind::Config` for settings that can't be used.
    pub fn new(settings: &config::Registry) -> Result<Self> {
        let client = settings.url.as_deref().map(|url| Client::new(settings, url)).transpose()?;
        Ok(Self { settings: settings.clone(), client: client.map(Arc::new) })
    }

    /// The encoder of records of this kind on `topic`: the schema is looked up, checked and registered
    /// as configured.
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
        let request = resolve::SchemaRequest { subject: &subject, schema: &schema, kind };
        let id = resolve::resolve_id(client, &request, self.settings.auto_register).await?;
        Ok(match format {
            Format::Avro => Encoder::Avro { id, kind },
            Format::Json | Format::JsonSchema => Encoder::JsonSchema { id },
        })
    }

    /// The decoder of records of this kind; `tasks` runs its requests.
    pub fn decoder(&self, kind: Kind, tasks: tokio::runtime::Handle) -> Decoder {
        Decoder::new(self.client.clone(), kind, tasks)
    }

    /// A decoder for a thread that may wait.
    ///
    /// # Errors
    /// `ErrorKind::Io` where no runtime can be started.
    pub fn blocking_decoder(&self, kind: Kind) -> Result<BlockingDecoder> {
        BlockingDecoder::new(self, kind)
    }
}

/// Encodes records of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub enum Encoder {
    /// Without a frame.
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
        let failed =
            |error| Error::new(ErrorKind::Internal, "can't write a record").with_source(error);
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
