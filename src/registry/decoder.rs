//! Decodes framed records by the schema that their id names.
//!
//! An id never changes its meaning, so a schema that was found is kept for good. An id that the
//! registry does not know is requested once more after a moment, since registries have followers
//! that lag, and counts as unknown for a minute then.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use apache_avro::Schema as Avro;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};

use super::client::{AVRO, Client, Schema};
use super::resolve::SILENCE_LIMIT;
use super::schemas::Kind;
use super::{Registry, avro, wire};
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{Policy, retry};

/// Pause before an unknown id is requested once more.
const SECOND_REQUEST_PAUSE: Duration = Duration::from_millis(300);
/// How long an id stays unknown.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(60);

/// The writer's schema of records with one id.
#[derive(Debug)]
enum WriterSchema {
    Json,
    Avro(Box<Avro>),
    /// Records with this schema can't be read.
    Unusable(Error),
}

/// The state of an id.
#[derive(Clone, Debug)]
enum Entry {
    Requested,
    Known(Arc<WriterSchema>),
    Unknown(Instant),
}

impl Entry {
    fn is_expired(&self) -> bool {
        matches!(self, Self::Unknown(since) if since.elapsed() > UNKNOWN_LIFETIME)
    }
}

#[derive(Debug)]
struct Cache {
    client: Arc<Client>,
    entries: Mutex<HashMap<u32, Entry>>,
}

/// Decodes records of one kind without waiting: it requests unknown schemas in the background.
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

    /// The record as JSON; a payload without a frame is returned as it is. None while its schema is
    /// being requested.
    ///
    /// # Errors
    /// `ErrorKind::InvalidMessage` where it can't be decoded.
    pub fn open<'p>(&self, payload: &'p [u8]) -> Option<Result<Cow<'p, [u8]>>> {
        let Some((id, record)) = wire::split(payload) else {
            return Some(Ok(Cow::Borrowed(payload)));
        };
        let Some(cache) = &self.cache else {
            return Some(Err(without_registry(id)));
        };
        match cache.find(id) {
            Some(Entry::Requested) => None,
            Some(Entry::Known(written)) => Some(decode_record(&written, id, record, self.kind)),
            Some(Entry::Unknown(_)) => Some(Err(unknown_schema(id))),
            None => {
                self.request_schema(payload);
                None
            }
        }
    }

    /// Requests the payload's schema, unless it is known or already requested.
    pub fn request_schema(&self, payload: &[u8]) {
        let (Some((id, _)), Some(cache)) = (wire::split(payload), &self.cache) else {
            return;
        };
        if cache.find(id).is_none() {
            cache.entries.lock().insert(id, Entry::Requested);
            self.tasks.spawn(fetch_in_background(Arc::downgrade(cache), id));
        }
    }
}

/// Decodes records on a thread that may wait.
#[derive(Debug)]
pub struct BlockingDecoder {
    cache: Option<Arc<Cache>>,
    kind: Kind,
    runtime: Runtime,
}

impl BlockingDecoder {
    pub(super) fn new(registry: &Registry, kind: Kind) -> Result<Self> {
        // A connection is driven by the runtime even while no decoder waits.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| {
            Error::new(ErrorKind::Io, "can't start a runtime").with_source(error)
        })?;
        let Decoder { cache, kind, .. } =
            Decoder::new(registry.client.clone(), kind, runtime.handle().clone());
        Ok(Self { cache, kind, runtime })
    }

    /// As [`Decoder::open`], but waits for the schema.
    ///
    /// # Errors
    /// `ErrorKind::InvalidMessage` where it can't be decoded; `ErrorKind::Registry` where the registry
    /// does not answer for a while.
    pub fn open<'p>(&self, payload: &'p [u8]) -> Result<Cow<'p, [u8]>> {
        let Some((id, record)) = wire::split(payload) else {
            return Ok(Cow::Borrowed(payload));
        };
        let cache = self.cache.as_ref().ok_or_else(|| without_registry(id))?;
        let entry = match cache.find(id) {
            Some(entry) => entry,
            None => {
                let entry = self.runtime.block_on(fetch_with_retry(cache, id))?;
                cache.entries.lock().insert(id, entry.clone());
                entry
            }
        };
        match entry {
            Entry::Known(written) => decode_record(&written, id, record, self.kind),
            Entry::Requested | Entry::Unknown(_) => Err(unknown_schema(id)),
        }
    }

    /// As [`Registry::encoder`], but waits for the id.
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
        if entries.get(&id).is_some_and(Entry::is_expired) {
            // Removes all expired entries, so that they don't pile up.
            entries.retain(|_, entry| !entry.is_expired());
        }
        entries.get(&id).cloned()
    }
}

/// # Errors
/// `ErrorKind::Registry`.
async fn fetch_entry(client: &Client, id: u32) -> Result<Entry> {
    let found = match client.schema(id).await? {
        Some(schema) => Some(schema),
        None => {
            tokio::time::sleep(SECOND_REQUEST_PAUSE).await;
            client.schema(id).await?
        }
    };
    Ok(match found {
        Some(schema) => Entry::Known(Arc::new(WriterSchema::new(&schema))),
        None => Entry::Unknown(Instant::now()),
    })
}

async fn fetch_with_retry(cache: &Cache, id: u32) -> Result<Entry> {
    let began = Instant::now();
    let policy = Policy::unlimited(Duration::from_millis(200), Duration::from_secs(2));
    let again = |_: &Error, _, pause| began.elapsed() + pause < SILENCE_LIMIT;
    let ended = retry(policy, || fetch_entry(&cache.client, id), again).await;
    ended.map(|(entry, _)| entry).map_err(|failure| failure.error)
}

/// Repeats the request until the registry answers, or the cache is dropped.
async fn fetch_in_background(cache: Weak<Cache>, id: u32) {
    let began = Instant::now();
    let policy = Policy::unlimited(Duration::from_millis(100), Duration::from_secs(5));
    for (number, pause) in policy.pauses().enumerate() {
        let Some(client) = cache.upgrade().map(|cache| Arc::clone(&cache.client)) else {
            return;
        };
        match fetch_entry(&client, id).await {
            Ok(entry) => {
                if number > 0 {
                    tracing::info!(id, outage = ?began.elapsed(), "the schema registry answers again");
                }
                if let Some(cache) = cache.upgrade() {
                    cache.entries.lock().insert(id, entry);
                }
                return;
            }
            Err(error) if number == 0 => tracing::warn!(
                id,
                error = error.chain(),
                "a request's schema can't be fetched: requests wait for the schema registry"
            ),
            Err(error) => {
                tracing::debug!(id, error = error.chain(), "the schema is requested again")
            }
        }
        tokio::time::sleep(pause).await;
    }
}

impl WriterSchema {
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
                    Self::Unusable(unusable("its schema is not valid Avro").with_source(error))
                }
            },
            other => Self::Unusable(
                unusable("its schema is of another kind")
                    .with_context("schemaType", other)
                    .with_context("allowed", "AVRO, JSON"),
            ),
        }
    }
}

fn decode_record<'p>(
    written: &WriterSchema,
    id: u32,
    record: &'p [u8],
    kind: Kind,
) -> Result<Cow<'p, [u8]>> {
    let json = match written {
        WriterSchema::Json => return Ok(Cow::Borrowed(record)),
        WriterSchema::Unusable(error) => return Err(error.clone().with_context("schema", id)),
        WriterSchema::Avro(schema) => avro::decode(record, schema, kind.avro()),
    };
    let json = json.map_err(|error| error.with_context("schema", id))?;
    Ok(Cow::Owned(json.to_string().into_bytes()))
}

fn without_registry(id: u32) -> Error {
    let reason = "the message is in a schema registry's wire format, and registry.url is not set";
    Error::new(ErrorKind::InvalidMessage, reason).with_context("schema", id)
}

fn unknown_schema(id: u32) -> Error {
    Error::new(ErrorKind::InvalidMessage, "the schema registry does not know the message's schema")
        .with_context("schema", id)
}
