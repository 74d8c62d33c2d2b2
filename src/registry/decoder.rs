//! What stands behind the prefix, read by the schema that its id names.
//!
//! Ids never change their meaning, so what was found is kept for good. An id that the registry does
//! not know is asked for once more after a moment, since registries have followers that lag, and is
//! then unknown for a minute.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use apache_avro::Schema as Avro;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};

use super::client::{AVRO, Client, Schema};
use super::schemas::Kind;
use super::settle::PATIENCE;
use super::{Registry, avro, wire};
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{Policy, retry};

/// Before an unknown id is asked for once more.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// For how long an id stays unknown.
const UNKNOWN: Duration = Duration::from_secs(60);

/// How records with one id are read.
#[derive(Debug)]
enum Written {
    Json,
    Avro(Box<Avro>),
    /// By a schema that is of no use here.
    Unusable(Error),
}

/// What is known of an id.
#[derive(Clone, Debug)]
enum Entry {
    Asked,
    Known(Arc<Written>),
    Unknown(Instant),
}

#[derive(Debug)]
struct Cache {
    client: Arc<Client>,
    entries: Mutex<HashMap<u32, Entry>>,
}

/// Opens records of one kind without ever waiting: what it does not know yet it asks for in the
/// background.
#[derive(Debug)]
pub struct Decoder {
    cache: Option<Arc<Cache>>,
    kind: Kind,
    tasks: Handle,
}

impl Decoder {
    pub(super) fn new(client: Option<Arc<Client>>, kind: Kind, tasks: Handle) -> Self {
        let cache = client.map(|client| Arc::new(Cache { client, entries: Mutex::default() }));
        Self { cache, kind, tasks }
    }

    /// The record as JSON; a payload that is not framed, as it is. None while its schema is being
    /// asked for.
    ///
    /// # Errors
    /// `ErrorKind::InvalidMessage` where it can't be read.
    pub fn open<'p>(&self, payload: &'p [u8]) -> Option<Result<Cow<'p, [u8]>>> {
        let Some((id, record)) = wire::split(payload) else {
            return Some(Ok(Cow::Borrowed(payload)));
        };
        let Some(cache) = &self.cache else {
            return Some(Err(without_registry(id)));
        };
        match cache.find(id) {
            Some(Entry::Asked) => None,
            Some(Entry::Known(written)) => Some(read(&written, (id, record), self.kind)),
            Some(Entry::Unknown(_)) => Some(Err(unknown(id))),
            None => {
                self.ask_for(payload);
                None
            }
        }
    }

    /// Sees to it that the payload's schema is asked for, if it has one that is not known.
    pub fn ask_for(&self, payload: &[u8]) {
        let (Some((id, _)), Some(cache)) = (wire::split(payload), &self.cache) else {
            return;
        };
        if cache.find(id).is_none() {
            cache.entries.lock().insert(id, Entry::Asked);
            self.tasks.spawn(ask(Arc::downgrade(cache), id));
        }
    }
}

/// Opens records on a thread that may wait.
#[derive(Debug)]
pub struct Reader {
    cache: Option<Arc<Cache>>,
    kind: Kind,
    runtime: Runtime,
}

impl Reader {
    pub(super) fn new(registry: &Registry, kind: Kind) -> Result<Self> {
        // Connections are shared between readers: they live on, whoever waits.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime
            .map_err(|error| Error::new(ErrorKind::Io, "can't start a runtime").because(error))?;
        let Decoder { cache, kind, .. } =
            Decoder::new(registry.client.clone(), kind, runtime.handle().clone());
        Ok(Self { cache, kind, runtime })
    }

    /// As [`Decoder::open`], waiting.
    ///
    /// # Errors
    /// `ErrorKind::InvalidMessage` where it can't be read; `ErrorKind::Registry` where the registry
    /// does not answer for a while.
    pub fn open<'p>(&self, payload: &'p [u8]) -> Result<Cow<'p, [u8]>> {
        let Some((id, record)) = wire::split(payload) else {
            return Ok(Cow::Borrowed(payload));
        };
        let cache = self.cache.as_ref().ok_or_else(|| without_registry(id))?;
        let entry = match cache.find(id) {
            Some(entry) => entry,
            None => {
                let entry = self.runtime.block_on(patiently(cache, id))?;
                cache.entries.lock().insert(id, entry.clone());
                entry
            }
        };
        match entry {
            Entry::Known(written) => read(&written, (id, record), self.kind),
            Entry::Asked | Entry::Unknown(_) => Err(unknown(id)),
        }
    }

    /// How records are written of which the schema is to be settled first.
    ///
    /// # Errors
    /// As [`Registry::encoder`].
    pub fn encoder(&self, registry: &Registry, kind: Kind, topic: &str) -> Result<super::Encoder> {
        self.runtime.block_on(registry.encoder(kind, topic))
    }
}

impl Cache {
    fn find(&self, id: u32) -> Option<Entry> {
        let mut entries = self.entries.lock();
        match entries.get(&id) {
            Some(Entry::Unknown(since)) if since.elapsed() > UNKNOWN => {
                // All such ones, so that they are not gathered without bound.
                entries.retain(
                    |_, entry| !matches!(entry, Entry::Unknown(since) if since.elapsed() > UNKNOWN),
                );
                None
            }
            found => found.cloned(),
        }
    }
}

/// # Errors
/// `ErrorKind::Registry`.
async fn look_up(client: &Client, id: u32) -> Result<Entry> {
    let found = match client.schema(id).await? {
        Some(schema) => Some(schema),
        None => {
            tokio::time::sleep(SECOND_LOOK).await;
            client.schema(id).await?
        }
    };
    Ok(match found {
        Some(schema) => Entry::Known(Arc::new(Written::new(&schema))),
        None => Entry::Unknown(Instant::now()),
    })
}

async fn patiently(cache: &Cache, id: u32) -> Result<Entry> {
    let began = Instant::now();
    let policy = Policy::endless(Duration::from_millis(200), Duration::from_secs(2));
    let again = |_: &Error, _, pause| began.elapsed() + pause < PATIENCE;
    let ended = retry(policy, || look_up(&cache.client, id), again).await;
    ended.map(|(entry, _)| entry).map_err(|gave_up| gave_up.error)
}

/// Asks until there is an answer, or nobody to whom it matters.
async fn ask(cache: Weak<Cache>, id: u32) {
    let began = Instant::now();
    let policy = Policy::endless(Duration::from_millis(100), Duration::from_secs(5));
    for (number, pause) in policy.pauses().enumerate() {
        let Some(client) = cache.upgrade().map(|cache| Arc::clone(&cache.client)) else {
            return;
        };
        match look_up(&client, id).await {
            Ok(entry) => {
                if number > 0 {
                    tracing::info!(id, down = ?began.elapsed(), "the schema registry answers again");
                }
                if let Some(cache) = cache.upgrade() {
                    cache.entries.lock().insert(id, entry);
                }
                return;
            }
            Err(error) if number == 0 => tracing::warn!(
                id,
                error = error.chain(),
                "a request's schema can't be had: requests wait for the schema registry"
            ),
            Err(error) => tracing::debug!(id, error = error.chain(), "asking again"),
        }
        tokio::time::sleep(pause).await;
    }
}

impl Written {
    fn new(schema: &Schema) -> Self {
        let unusable = |reason: &'static str| Error::new(ErrorKind::InvalidMessage, reason);
        match schema.kind() {
            "JSON" => Self::Json,
            AVRO if !schema.references.is_empty() => {
                Self::Unusable(unusable("its schema names schemas of other subjects"))
            }
            AVRO => match Avro::parse_str(&schema.schema) {
                Ok(parsed) if avro::is_recursive(&parsed) => {
                    Self::Unusable(unusable("its schema contains itself"))
                }
                Ok(parsed) => Self::Avro(Box::new(parsed)),
                Err(error) => {
                    Self::Unusable(unusable("its schema is no valid Avro").because(error))
                }
            },
            other => Self::Unusable(
                unusable("its schema is of another kind")
                    .with("schemaType", other)
                    .with("allowed", "AVRO, JSON"),
            ),
        }
    }
}

fn read<'p>(written: &Written, (id, record): (u32, &'p [u8]), kind: Kind) -> Result<Cow<'p, [u8]>> {
    let json = match written {
        Written::Json => return Ok(Cow::Borrowed(record)),
        Written::Unusable(error) => return Err(error.clone().with("schema", id)),
        Written::Avro(schema) => avro::decode(record, schema, kind.avro()),
    };
    let json = json.map_err(|error| error.with("schema", id))?;
    Ok(Cow::Owned(json.to_string().into_bytes()))
}

fn without_registry(id: u32) -> Error {
    let reason = "the message is in a schema registry's wire format, and registry.url is not set";
    Error::new(ErrorKind::InvalidMessage, reason).with("schema", id)
}

fn unknown(id: u32) -> Error {
    Error::new(ErrorKind::InvalidMessage, "the schema registry does not know the message's schema")
        .with("schema", id)
}
