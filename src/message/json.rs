//! JSON payloads: reading and writing them, and the error of a message that can't be read.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

pub fn parse_json(payload: &[u8]) -> Result<Value> {
    if payload.is_empty() {
        return Err(invalid("the message is empty"));
    }
    serde_json::from_slice(payload)
        .map_err(|error| invalid("the message is not JSON").with_source(error))
}

pub fn to_json<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record)
        .map_err(|error| Error::new(ErrorKind::Internal, "can't write a record").with_source(error))
}

/// The current time: RFC 3339, UTC, microseconds.
pub fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

pub fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidMessage, reason)
}
