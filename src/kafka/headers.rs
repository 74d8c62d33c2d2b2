//! Record headers, byte for byte.
//!
//! rust-rdkafka assumes that a header's name is UTF-8 and panics where it is not: one foreign
//! message would end every worker that reads it, for ever. Headers are therefore read through
//! librdkafka's own functions. One limit remains: librdkafka returns a name as a C string, so
//! anything behind a NUL byte in a name is not seen.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings::{self, rd_kafka_resp_err_t};
use rdkafka::message::BorrowedMessage;

/// A header. Names may repeat, and a value may be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawHeader {
    pub name: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

impl RawHeader {
    pub fn new(name: &str, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.as_bytes().to_vec(), value: Some(value.into()) }
    }

    /// The value of the first header called `name`; empty where that header has no value.
    pub fn find<'h>(headers: &'h [Self], name: &str) -> Option<&'h [u8]> {
        let header = headers.iter().find(|header| header.name == name.as_bytes())?;
        Some(header.value.as_deref().unwrap_or_default())
    }
}

/// The headers of `message`, in order; empty where they can't be parsed.
pub fn read_headers(message: &BorrowedMessage<'_>) -> Vec<RawHeader> {
    let mut headers = ptr::null_mut();
    // SAFETY: the message outlives the call and keeps ownership of the headers.
    let found = unsafe { bindings::rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if found != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return Vec::new();
    }
    // SAFETY: the headers belong to the message, which is borrowed.
    let count = unsafe { bindings::rd_kafka_header_cnt(headers) };
    let mut raw = Vec::with_capacity(count);
    for index in 0..count {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: as above; name and value belong to the headers and are copied at once. The name
        // ends with a NUL byte, the value has `size` bytes or is null.
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
