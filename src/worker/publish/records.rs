//! Outcomes to records of the output topic and the dead-letter topic.
//!
//! A record above its topic's size limit would fail its transaction again and again, so each is made
//! to fit here: a caption that does not fit becomes a dead letter, a dead letter leaves out the
//! original bytes, which are still at its source offset. The producer's own limit is known; a
//! topic's limit is learned from its refusals, since it may change while the worker runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use opentelemetry::ContextGuard;

use crate::config::{Config, Kafka};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::record::ProducerRecord;
use crate::message::{
    self, CaptionRecord, DeadLetter, FailedStage, ImageRequest, TraceContext, header,
};
use crate::registry::{Encoder, Kind, Registry};
use crate::worker::exactly_once::ledger::MessageId;
use crate::worker::outcome::{Captioned, Failed, Origin, Outcome};
use crate::worker::telemetry::spans::{CommitSpans, attach};

/// librdkafka's default of `message.max.bytes`, below the broker's own.
const MAX_BYTES: usize = 1_000_000;
/// Room for headers and framing.
const MARGIN: usize = 4096;

/// A record, ready to be produced.
#[derive(Debug)]
pub struct Record {
    /// The message that it answers, and the index of the reference in it.
    pub message: MessageId,
    pub index: usize,
    /// When that message was polled.
    pub polled: Instant,
    pub topic: Arc<str>,
    /// The reference's own key.
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// The error of a dead letter; None for a caption.
    pub code: Option<ErrorKind>,
    pub spans: CommitSpans,
}

impl Record {
    pub fn to_produce(&self) -> ProducerRecord<'_> {
        let headers = self.headers.iter();
        ProducerRecord {
            topic: &self.topic,
            partition: None,
            key: self.key.as_deref(),
            payload: Some(&self.payload),
            headers: headers.map(|(name, value)| (name.as_bytes(), Some(&**value))).collect(),
        }
    }

    /// Log lines belong to the trace that this record carries until the guard is dropped.
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

/// The encoders of captions and dead letters.
#[derive(Debug)]
pub struct Encoders {
    captions: Encoder,
    dead_letters: Encoder,
}

impl Encoders {
    /// # Errors
    /// As [`Registry::encoder`].
    pub async fn resolve(registry: &Registry, kafka: &Kafka) -> Result<Self> {
        Ok(Self {
            captions: registry.encoder(Kind::Caption, &kafka.output_topic).await?,
            dead_letters: registry.encoder(Kind::DeadLetter, &kafka.dead_letter_topic).await?,
        })
    }
}

/// Partition, offset and index of a reference.
type Source = (i32, i64, usize);

#[derive(Debug)]
pub struct RecordWriter {
    captions: Arc<str>,
    dead_letters: Arc<str>,
    encoders: Encoders,
    max_bytes: usize,
    /// How often a record for this reference was too large for its topic.
    refused: BTreeMap<Source, u32>,
}

impl RecordWriter {
    pub fn new(config: &Config, encoders: Encoders) -> Self {
        let limit = config.kafka.properties.get("message.max.bytes");
        Self {
            captions: config.kafka.output_topic.as_str().into(),
            dead_letters: config.kafka.dead_letter_topic.as_str().into(),
            encoders,
            max_bytes: limit.and_then(|text| text.trim().parse().ok()).unwrap_or(MAX_BYTES),
            refused: BTreeMap::new(),
        }
    }

    /// Notes that the topic of `record` refuses a record of its size: the next record for the same
    /// reference will be smaller.
    pub fn refuse(&mut self, record: &Record) {
        let _in_trace = record.in_trace();
        let (partition, offset, index) = source(record.message, record.index);
        tracing::warn!(
            partition,
            offset,
            index,
            topic = &*record.topic,
            bytes = record.payload.len(),
            "a record is too large for its topic"
        );
        *self.refused.entry((partition, offset, index)).or_default() += 1;
    }

    /// Forgets the references below the committed offset of `partition`.
    pub fn committed(&mut self, partition: i32, next_offset: i64) {
        self.refused.retain(|(of, offset, _), _| *of != partition || *offset >= next_offset);
    }

    fn refusals(&self, origin: &Origin) -> u32 {
        let source = source(origin.message_id(), origin.index);
        self.refused.get(&source).copied().unwrap_or(0)
    }

    /// # Errors
    /// `ErrorKind::Internal` for an outcome that its schema does not allow.
    pub fn record(&self, outcome: Outcome) -> Result<Record> {
        let Outcome { origin, request, result } = outcome;
        match (result, &request) {
            (Ok(captioned), Some(request)) => self.caption(&origin, request, &captioned),
            (Ok(_), None) => {
                Err(Error::new(ErrorKind::Internal, "a caption of a message that names no image"))
            }
            (Err(failed), request) => self.dead_letter(&origin, request.as_ref(), &failed),
        }
    }

    fn caption(
        &self,
        origin: &Origin,
        request: &ImageRequest,
        captioned: &Captioned,
    ) -> Result<Record> {
        let Captioned { object, content_type, width, height, text, score, embedding, model } =
            captioned;
        let position = &origin.message.position;
        let etag = object.etag.as_ref().or(request.etag.as_ref());
        let record = CaptionRecord {
            version_id: object.version_id.as_ref().or(request.version_id.as_ref()).cloned(),
            etag: etag.cloned(),
            content_type: (*content_type).to_owned(),
            width: *width,
            height: *height,
            caption: text.clone(),
            score: *score,
            embedding: embedding.clone(),
            ..CaptionRecord::new(position, request, model)
        };
        let payload = self.encoders.captions.encode(&record)?;
        let key = origin.message.original.key.clone();
        let fits = self.fits(key.as_deref(), &payload);
        if !fits || self.refusals(origin) > 0 {
            let error = Error::new(
                ErrorKind::RecordTooLarge,
                "the caption does not fit into a message with these attributes",
            )
            .with_context("bytes", payload.len());
            let error = if fits {
                error.with_context("refused by", &self.captions)
            } else {
                error.with_context("limit", self.max_bytes)
            };
            let (stage, model) = (FailedStage::Caption, Arc::clone(model));
            let failed = Failed { stage, error, attempts: 1, model };
            return self.dead_letter(origin, Some(request), &failed);
        }
        let sent = (key.as_deref(), payload.len());
        let (trace, spans) =
            CommitSpans::begin(&origin.message, &origin.trace, &self.captions, sent, None);
        let mut headers = header::source_headers(position, origin.index, &trace);
        if let Some(tag) = etag {
            headers.push((header::ETAG, tag.as_bytes().to_vec()));
        }
        headers.push((header::MODEL_DIGEST, model.digest.as_bytes().to_vec()));
        Ok(Record {
            message: origin.message_id(),
            index: origin.index,
            polled: origin.message.polled,
            topic: Arc::clone(&self.captions),
            key,
            payload,
            headers,
            code: None,
            spans,
        })
    }

    fn dead_letter(
        &self,
        origin: &Origin,
        request: Option<&ImageRequest>,
        Failed { stage, error, attempts, model }: &Failed,
    ) -> Result<Record> {
        let message = &origin.message;
        let original = &message.original;
        let tried = (*stage, (*attempts).max(1));
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
            CommitSpans::begin(message, &origin.trace, &self.dead_letters, sent, Some(error));
        let mut headers = header::source_headers(&message.position, origin.index, &trace);
        headers.push((header::ERROR_CODE, error.kind().code().as_bytes().to_vec()));
        headers.push((header::MODEL_DIGEST, model.digest.as_bytes().to_vec()));
        Ok(Record {
            message: origin.message_id(),
            index: origin.index,
            polled: message.polled,
            topic: Arc::clone(&self.dead_letters),
            key,
            payload,
            headers,
            code: Some(error.kind()),
            spans,
        })
    }

    fn fits(&self, key: Option<&[u8]>, payload: &[u8]) -> bool {
        let bytes = payload.len().saturating_add(key.map_or(0, <[u8]>::len));
        bytes.saturating_add(MARGIN) <= self.max_bytes
    }
}

fn source(MessageId { partition, offset, .. }: MessageId, index: usize) -> Source {
    (partition, offset, index)
}
