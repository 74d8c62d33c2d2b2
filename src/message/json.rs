//! JSON payloads, and the error of a message that can't be read.

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

pub fn parse_json(payload: &[u8]) -> Result<Value> {
    if payload.is_empty() {
        return Err(invalid("the message is empty"));
    }
    serde_json::from_slice(payload)
        .map_err(|error| invalid("the message is not JSON").with_source(error))
}

pub fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidMessage, reason)
}
