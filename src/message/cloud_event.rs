//! CloudEvents 1.0 in Kafka (the specification's Kafka protocol binding): structured, the event
//! as JSON with the message inside, or binary, the event's attributes as `ce_` headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::RawHeader;
use super::json::{invalid, parse_json};
use crate::error::Result;

const VERSION_HEADER: &str = "ce_specversion";

pub fn is_binary(headers: &[RawHeader]) -> bool {
    RawHeader::find(headers, VERSION_HEADER).is_some()
}

/// Refuses a binary event of a version other than 1.x.
pub fn check_binary(headers: &[RawHeader]) -> Result<()> {
    match RawHeader::find(headers, VERSION_HEADER).map(String::from_utf8_lossy) {
        Some(version) if version.starts_with("1.") => Ok(()),
        found => Err(invalid("the CloudEvent's version is not supported")
            .with_context("ce_specversion", found.unwrap_or_default())
            .with_context("allowed", "1.x")),
    }
}

pub fn is_structured(message: &Value) -> bool {
    message.get("specversion").is_some()
}

/// The message inside a structured event: `data`, or `data_base64` decoded.
pub fn take_data(mut event: Value) -> Result<Value> {
    let version = event.get("specversion").and_then(Value::as_str).unwrap_or_default();
    if !version.starts_with("1.") {
        return Err(invalid("the CloudEvent's version is not supported")
            .with_context("specversion", version)
            .with_context("allowed", "1.x"));
    }
    if let Some(encoded) = event.get("data_base64") {
        let text = encoded.as_str().ok_or_else(|| invalid("data_base64 is not a string"))?;
        let bytes = STANDARD
            .decode(text)
            .map_err(|error| invalid("data_base64 is not Base64").with_source(error))?;
        return parse_json(&bytes);
    }
    match event.get_mut("data").map(Value::take) {
        // Some producers send JSON as text.
        Some(Value::String(text)) => parse_json(text.as_bytes()),
        Some(Value::Null) | None => Err(invalid("the CloudEvent has no data")),
        Some(data) => Ok(data),
    }
}
