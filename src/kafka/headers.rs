//! Record headers, byte for byte, in both directions.
//!
//! rust-rdkafka takes the name of a header for UTF-8 and panics where it is not, so one foreign
//! message would end every worker that reads it, for ever. Names are therefore read and written
//! here through librdkafka's own functions, as bytes. One limit remains: librdkafka hands a name
//! out as a C string, so what follows a NUL byte inside a name is not seen.

use std::ffi::{CStr, CString};
use std::ptr;

use rdkafka::bindings::{self, rd_kafka_resp_err_t, rd_kafka_vtype_t};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};

use crate::message::{Original, RawHeader};

/// Any partition, as librdkafka writes it.
const UNASSIGNED: i32 = -1;

/// The headers of `message`, in order; none where they can't be parsed.
pub fn of(message: &BorrowedMessage<'_>) -> Vec<RawHeader> {
    let mut headers = ptr::null_mut();
    // SAFETY: the message outlives the call and goes on to own the headers it is asked for.
    let found = unsafe { bindings::rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if found != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return Vec::new();
    }
    // SAFETY: the headers are the message's, which is borrowed.
    let count = unsafe { bindings::rd_kafka_header_cnt(headers) };
    let mut raw = Vec::with_capacity(count);
    for index in 0..count {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: as above; what is pointed to belongs to the headers and is copied at once. The
        // name ends with a NUL byte, the value has `size` bytes or is null.
        unsafe {
            let got = bindings::rd_kafka_header_get_all(
                headers,
                index,
                &raw mut name,
                &raw mut value,
                &raw mut size,
            );
            if got != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
                break;
            }
            let value = (!value.is_null())
                .then(|| std::slice::from_raw_parts(value.cast::<u8>(), size).to_vec());
            raw.push(RawHeader { name: CStr::from_ptr(name).to_bytes().to_vec(), value });
        }
    }
    raw
}

/// Key, payload and headers of `message`.
pub fn original(message: &BorrowedMessage<'_>) -> Original {
    Original {
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: of(message),
    }
}

/// Hands a record to `producer`, which sends it in the background; to the partition that its key
/// gives where `partition` is absent.
///
/// # Errors
/// `KafkaError::MessageProduction`, such as a full queue: nothing was taken then.
pub fn produce<C>(
    producer: &BaseProducer<C>,
    topic: &str,
    partition: Option<i32>,
    record: &Original,
) -> KafkaResult<()>
where
    C: ProducerContext<NoCustomPartitioner, DeliveryOpaque = usize>,
{
    let name = CString::new(topic)?;
    let (key, key_size) = pointer(record.key.as_deref());
    let (payload, payload_size) = pointer(record.payload.as_deref());
    // SAFETY: every pointer outlives the call, which copies key and payload (`F_COPY`) and takes
    // the headers over only where it succeeds. The context's deliveries carry a number, which
    // rust-rdkafka reads from the opaque pointer itself: where none is given, that is 0.
    let code = unsafe {
        let headers = bindings::rd_kafka_headers_new(record.headers.len());
        for header in &record.headers {
            let (value, value_size) = pointer(header.value.as_deref());
            // Can fail only for headers that are read-only.
            bindings::rd_kafka_header_add(
                headers,
                header.name.as_ptr().cast(),
                header.name.len().cast_signed(),
                value,
                value_size.cast_signed(),
            );
        }
        let code = bindings::rd_kafka_producev(
            producer.client().native_ptr(),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
            name.as_ptr(),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
            partition.unwrap_or(UNASSIGNED),
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
            bindings::RD_KAFKA_MSG_F_COPY,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
            payload,
            payload_size,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
            key,
            key_size,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
            headers,
            rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        );
        if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            bindings::rd_kafka_headers_destroy(headers);
        }
        code
    };
    match RDKafkaErrorCode::from(code) {
        RDKafkaErrorCode::NoError => Ok(()),
        code => Err(KafkaError::MessageProduction(code)),
    }
}

/// What librdkafka takes for bytes that may be absent: nothing is a null pointer, and no bytes
/// are not.
fn pointer(bytes: Option<&[u8]>) -> (*const std::ffi::c_void, usize) {
    bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), bytes.len()))
}
