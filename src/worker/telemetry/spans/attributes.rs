//! Names and attributes of spans: those of the semantic conventions where there are any, our own
//! under `fusioncap.`.

use std::borrow::Cow;
use std::sync::Arc;

use opentelemetry::trace::{Span, Status};
use opentelemetry::{KeyValue, StringValue, Value};
use opentelemetry_semantic_conventions::attribute;

use crate::config::Kafka;
use crate::error::Error;
use crate::message::ImageRequest;
use crate::worker::source_message::SourceMessage;

/// How a reference ended: captioned, dead_letter, skipped, stale.
pub const OUTCOME: &str = "fusioncap.outcome";
/// Event records of a message that create no object.
pub const SKIPPED_EVENTS: &str = "fusioncap.skipped_events";
/// The reference's id, as its caption has it.
const ID: &str = "fusioncap.reference.id";
/// Its place among the images of its message.
const INDEX: &str = "fusioncap.reference.index";
const ATTEMPTS: &str = "fusioncap.fetch.attempts";
const OBJECT_BYTES: &str = "fusioncap.object.size";
/// Images in a batch, whether their traces are recorded or not.
pub const BATCH_IMAGES: &str = "fusioncap.batch.images";

/// Longest key of a message that is repeated, in bytes.
const MAX_KEY: usize = 256;

/// Names and values that all spans of a run share.
#[derive(Debug)]
pub struct Names {
    pub poll: Cow<'static, str>,
    pub process: Cow<'static, str>,
    pub commit: Cow<'static, str>,
    input: StringValue,
    group: StringValue,
}

impl Names {
    pub fn new(kafka: &Kafka) -> Self {
        let input = &kafka.input_topic;
        Self {
            poll: format!("poll {input}").into(),
            process: format!("process {input}").into(),
            commit: format!("commit {input}").into(),
            input: Arc::<str>::from(input.as_str()).into(),
            group: Arc::<str>::from(kafka.group.as_str()).into(),
        }
    }

    /// An operation of the consumer on the input topic; `kind` is one of the conventions' types.
    pub fn consumer(&self, operation: &'static str, kind: &'static str) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new(attribute::MESSAGING_SYSTEM, "kafka"),
            KeyValue::new(attribute::MESSAGING_OPERATION_NAME, operation),
            KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, kind),
            KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, self.input.clone()),
        ];
        attributes
            .push(KeyValue::new(attribute::MESSAGING_CONSUMER_GROUP_NAME, self.group.clone()));
        attributes
    }
}

pub fn process(
    names: &Names,
    message: &SourceMessage,
    index: usize,
    request: Option<&ImageRequest>,
) -> Vec<KeyValue> {
    let (position, original) = (&message.position, &message.original);
    let mut attributes = names.consumer("process", "process");
    attributes.push(partition(position.partition));
    attributes.push(KeyValue::new(attribute::MESSAGING_KAFKA_OFFSET, position.offset));
    attributes.push(KeyValue::new(attribute::MESSAGING_MESSAGE_BODY_SIZE, {
        count(original.payload.as_ref().map_or(0, Vec::len))
    }));
    attributes.extend(key(original.key.as_deref()));
    if index > 0 {
        attributes.push(KeyValue::new(INDEX, count(index)));
    }
    if let Some(request) = request {
        attributes.push(KeyValue::new(ID, request.id.clone()));
    }
    attributes
}

pub fn send(topic: &Arc<str>, key_of_message: Option<&[u8]>, payload: usize) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(attribute::MESSAGING_SYSTEM, "kafka"),
        KeyValue::new(attribute::MESSAGING_OPERATION_NAME, "send"),
        KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "send"),
        KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, Arc::clone(topic)),
        KeyValue::new(attribute::MESSAGING_MESSAGE_BODY_SIZE, count(payload)),
    ];
    attributes.extend(key(key_of_message));
    attributes
}

pub fn fetch(request: &ImageRequest, attempts: u32, bytes: Option<usize>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(attribute::RPC_SYSTEM_NAME, "aws-api"),
        KeyValue::new(attribute::RPC_METHOD, "S3/GetObject"),
        KeyValue::new(attribute::AWS_S3_BUCKET, request.bucket.clone()),
        KeyValue::new(attribute::AWS_S3_KEY, request.key.clone()),
        KeyValue::new(ATTEMPTS, i64::from(attempts)),
    ];
    attributes.extend(bytes.map(|bytes| KeyValue::new(OBJECT_BYTES, count(bytes))));
    attributes
}

/// Marks a span as failed, by the error's code.
pub fn fail(span: &mut impl Span, error: &Error) {
    span.set_attribute(KeyValue::new(attribute::ERROR_TYPE, error.kind().code()));
    span.set_status(Status::error(error.chain()));
}

pub fn count(number: usize) -> Value {
    Value::I64(i64::try_from(number).unwrap_or(i64::MAX))
}

fn partition(number: i32) -> KeyValue {
    KeyValue::new(attribute::MESSAGING_DESTINATION_PARTITION_ID, number.to_string())
}

/// The conventions have keys as text: other keys, and long ones, are left out.
fn key(bytes: Option<&[u8]>) -> Option<KeyValue> {
    let bytes = bytes.filter(|bytes| bytes.len() <= MAX_KEY)?;
    let text = std::str::from_utf8(bytes).ok()?;
    Some(KeyValue::new(attribute::MESSAGING_KAFKA_MESSAGE_KEY, text.to_owned()))
}
