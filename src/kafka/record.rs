//! Records, byte for byte: a copy of a consumed one, and one to produce.
//!
//! Kafka distinguishes an absent payload, key or header value from an empty one, and so do these
//! types. Records are produced through librdkafka's own function, since rust-rdkafka takes header
//! names as text only.

use std::ffi::{CString, c_void};
use std::ptr;

use rdkafka::bindings::{self, rd_kafka_vtype_t};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use rdkafka::util::IntoOpaque;

use crate::kafka::headers::{RawHeader, read_headers};

/// librdkafka's `RD_KAFKA_PARTITION_UA`: the partitioner chooses.
const UNASSIGNED: i32 = -1;

/// Key, payload and headers of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRecord {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<RawHeader>,
}

impl RawRecord {
    /// Copies a message out of the consumer's memory.
    pub fn detach(message: &BorrowedMessage<'_>) -> Self {
        Self {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: read_headers(message),
        }
    }
}

/// A record to produce.
#[derive(Clone, Debug)]
pub struct ProducerRecord<'r> {
    pub topic: &'r str,
    /// None: the partition that the key gives.
    pub partition: Option<i32>,
    pub key: Option<&'r [u8]>,
    pub payload: Option<&'r [u8]>,
    /// Names and values, in order.
    pub headers: Vec<(&'r [u8], Option<&'r [u8]>)>,
}

impl<'r> ProducerRecord<'r> {
    pub fn new(topic: &'r str, partition: Option<i32>, record: &'r RawRecord) -> Self {
        let headers = record.headers.iter();
        Self {
            topic,
            partition,
            key: record.key.as_deref(),
            payload: record.payload.as_deref(),
            headers: headers.map(|header| (&*header.name, header.value.as_deref())).collect(),
        }
    }
}

/// Hands a record to `producer`, which copies it and sends it in the background. `index` comes back
/// with its delivery report.
///
/// # Errors
/// `KafkaError::MessageProduction`, such as a full queue; nothing is enqueued then.
pub fn produce_record<C>(
    producer: &BaseProducer<C>,
    record: &ProducerRecord<'_>,
    index: usize,
) -> KafkaResult<()>
where
    C: ProducerContext<NoCustomPartitioner, DeliveryOpaque = usize>,
{
    let topic = CString::new(record.topic)?;
    let (key, key_size) = pointer_and_size(record.key);
    let (payload, payload_size) = pointer_and_size(record.payload);
    // SAFETY: every pointer outlives the call, which copies key and payload (`F_COPY`) and takes
    // ownership of the headers only where it succeeds. The opaque pointer is a number, which the
    // context reads from the pointer itself.
    let code = unsafe {
        let headers = bindings::rd_kafka_headers_new(record.headers.len());
        for (name, value) in &record.headers {
            let (value, value_size) = pointer_and_size(*value);
            // Can fail only for read-only headers.
            bindings::rd_kafka_header_add(
                headers,
                name.as_ptr().cast(),
                name.len().cast_signed(),
                value,
                value_size.cast_signed(),
            );
        }
        let code = bindings::rd_kafka_producev(
            producer.client().native_ptr(),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
            record.partition.unwrap_or(UNASSIGNED),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
            bindings::RD_KAFKA_MSG_F_COPY,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
            payload,
            payload_size,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
            key,
            key_size,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
            index.into_ptr(),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
            headers,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        );
        if code != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            bindings::rd_kafka_headers_destroy(headers);
        }
        code
    };
    match RDKafkaErrorCode::from(code) {
        RDKafkaErrorCode::NoError => Ok(()),
        code => Err(KafkaError::MessageProduction(code)),
    }
}

/// Absent bytes are a null pointer; empty bytes are not.
fn pointer_and_size(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), bytes.len()))
}
