//! Outcomes to records: what is written to the output and the dead-letter topic.
//!
//! A record that is larger than its topic takes would fail its transaction again and again, so each
//! is made to fit here: a caption that does not fit becomes a dead letter, a dead letter leaves out
//! the original bytes, which are still at its source offset. The producer's own limit is known; a
//! topic's is learned from its refusals, since it may be changed while the worker runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry::ContextGuard;

use crate::config::{Config, Kafka};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{self, CaptionRecord, DeadLetter, ImageRequest, Stage, TraceContext, header};
use crate::registry::{Encoder, Kind, Registry};
use crate::worker::models::Models;
use crate::worker::outcome::{Captioned, Failed, Origin, Outcome};
use crate::worker::telemetry::spans::{Sending, attach};

/// librdkafka's default of `message.max.bytes`, below the broker's own.
const MAX_BYTES: usize = 1_000_000;
/// Room for headers and framing.
const MARGIN: usize = 4096;

/// Partition, offset and index of the reference that a record answers.
pub type Source = (i32, i64, usize);

/// A record, ready to be produced.
#[derive(Debug)]
pub struct Record {
    pub source: Source,
    pub topic: Arc<str>,
    /// The reference's own key.
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// What a dead letter is for; None for a caption.
    pub code: Option<ErrorKind>,
    pub spans: Sending,
}

impl Record {
    /// What is logged until the guard is dropped belongs to the trace that this record carries.
    pub fn in_trace(&self) -> ContextGuard {
        let carried = self.headers.iter().find(|(name, _)| *name == message::TRACEPARENT);
        let text = carried.and_then(|(_, value)| String::from_utf8(value.clone()).ok());
        attach(
            text.map(|traceparent| {
                TraceContext { traceparent, tracestate: None }.to_span_context()
            }),
        )
    }
}

/// How captions and dead letters are written.
#[derive(Debug)]
pub struct Encoders {
    captions: Encoder,
    dead_letters: Encoder,
}

impl Encoders {
    /// # Errors
    /// As [`Registry::encoder`].
    pub async fn settle(registry: &Registry, kafka: &Kafka) -> Result<Self> {
        Ok(Self {
            captions: registry.encoder(Kind::Caption, &kafka.output_topic).await?,
            dead_letters: registry.encoder(Kind::DeadLetter, &kafka.dead_letter_topic).await?,
        })
    }
}

/// Knows the topics and the models.
#[derive(Debug)]
pub struct RecordWriter {
    captions: Arc<str>,
    dead_letters: Arc<str>,
    models: Arc<Models>,
    encoders: Encoders,
    embeddings: bool,
    max_bytes: usize,
    /// How often a record for this reference was too large for its topic.
    refused: BTreeMap<Source, u32>,
}

impl RecordWriter {
    pub fn new(config: &Config, models: Arc<Models>, encoders: Encoders) -> Self {
        let limit = config.kafka.properties.get("message.max.bytes");
        Self {
            captions: config.kafka.output_topic.as_str().into(),
            dead_letters: config.kafka.dead_letter_topic.as_str().into(),
            models,
            encoders,
            embeddings: config.model.embeddings,
            max_bytes: limit.and_then(|text| text.trim().parse().ok()).unwrap_or(MAX_BYTES),
            refused: BTreeMap::new(),
        }
    }

    /// Notes that the topic of `record` does not take a record of its size: the next one for the
    /// same reference will be smaller.
    pub fn refuse(&mut self, record: &Record) {
        let _in_trace = record.in_trace();
        let (partition, offset, index) = record.source;
        tracing::warn!(
            partition,
            offset,
            index,
            topic = &*record.topic,
            bytes = record.payload.len(),
            "a record is too large for its topic"
        );
        *self.refused.entry(record.source).or_default() += 1;
    }

    /// Forgets the references below the committed offset of `partition`.
    pub fn committed(&mut self, partition: i32, next_offset: i64) {
        self.refused.retain(|(of, offset, _), _| *of != partition || *offset >= next_offset);
    }

    fn refusals(&self, origin: &Origin) -> u32 {
        self.refused.get(&source(origin)).copied().unwrap_or(0)
    }

    pub fn record(&self, outcome: Outcome) -> Result<Record> {
        match outcome {
            Outcome::Captioned(captioned) => self.caption(*captioned),
            Outcome::Failed(failed) => {
                let Failed { origin, request, stage, error, attempts } = *failed;
                self.dead_letter(&origin, request.as_ref(), &error, (stage, attempts.max(1)))
            }
        }
    }

    fn caption(&self, captioned: Captioned) -> Result<Record> {
        let Captioned { origin, request, object, content_type, width, height, caption, model } =
            captioned;
        let position = &origin.message.position;
        let etag = object.etag.or_else(|| request.etag.clone());
        let record = CaptionRecord {
            version_id: object.version_id.or_else(|| request.version_id.clone()),
            etag: etag.clone(),
            content_type: content_type.to_owned(),
            width,
            height,
            caption: caption.text,
            score: caption.score,
            embedding: self.embeddings.then_some(caption.embedding),
            ..CaptionRecord::new(position, &request, &model)
        };
        let payload = self.encoders.captions.encode(&record)?;
        let key = origin.message.original.key.clone();
        let fits = self.fits(key.as_deref(), &payload);
        if !fits || self.refusals(&origin) > 0 {
            let error = Error::new(
                ErrorKind::RecordTooLarge,
                "the caption does not fit into a message with these attributes",
            )
            .with("bytes", payload.len());
            let error = if fits {
                error.with("refused by", &self.captions)
            } else {
                error.with("limit", self.max_bytes)
            };
            return self.dead_letter(&origin, Some(&request), &error, (Stage::Caption, 1));
        }
        let sent = (key.as_deref(), payload.len());
        let (trace, spans) =
            Sending::begin(&origin.message, &origin.trace, &self.captions, sent, None);
        let mut headers = header::of(position, origin.index, &trace);
        if let Some(tag) = etag {
            headers.push((header::ETAG, tag.into_bytes()));
        }
        headers.push((header::MODEL_DIGEST, model.digest.as_bytes().to_vec()));
        let (source, topic) = (source(&origin), Arc::clone(&self.captions));
        Ok(Record { source, topic, key, payload, headers, code: None, spans })
    }

    fn dead_letter(
        &self,
        origin: &Origin,
        request: Option<&ImageRequest>,
        error: &Error,
        tried: (Stage, u32),
    ) -> Result<Record> {
        let message = &origin.message;
        let original = &message.original;
        let mut letter =
            DeadLetter::new(&message.position, origin.index, request, error, tried, original);
        let mut key = original.key.clone();
        let mut payload = self.encoders.dead_letters.encode(&letter)?;
        // The first refusal of a caption's reference was the caption's.
        let refused = self.refusals(origin) > u32::from(error.kind() == ErrorKind::RecordTooLarge);
        if refused || !self.fits(key.as_deref(), &payload) {
            letter.leave_out_original();
            payload = self.encoders.dead_letters.encode(&letter)?;
            if refused || !self.fits(key.as_deref(), &payload) {
                key = None;
            }
        }
        let sent = (key.as_deref(), payload.len());
        let (trace, spans) =
            Sending::begin(message, &origin.trace, &self.dead_letters, sent, Some(error));
        let mut headers = header::of(&message.position, origin.index, &trace);
        headers.push((header::ERROR_CODE, error.kind().code().as_bytes().to_vec()));
        let digest = self.models.serving().identity.digest.as_bytes().to_vec();
        headers.push((header::MODEL_DIGEST, digest));
        let (source, code) = (source(origin), Some(error.kind()));
        let topic = Arc::clone(&self.dead_letters);
        Ok(Record { source, topic, key, payload, headers, code, spans })
    }

    fn fits(&self, key: Option<&[u8]>, payload: &[u8]) -> bool {
        let bytes = payload.len().saturating_add(key.map_or(0, <[u8]>::len));
        bytes.saturating_add(MARGIN) <= self.max_bytes
    }
}

fn source(origin: &Origin) -> Source {
    (origin.partition(), origin.offset(), origin.index)
}
