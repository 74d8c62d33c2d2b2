//! A message as it stood on its topic, byte for byte, and how a dead letter keeps it.
//!
//! Kafka tells no value from an empty one, for payloads, keys and the values of headers; names of
//! headers may repeat, and are bytes rather than text. All of it is kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::invalid;
use crate::error::Result;

/// A header, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawHeader {
    pub name: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

impl RawHeader {
    pub fn new(name: &str, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.as_bytes().to_vec(), value: Some(value.into()) }
    }

    /// The value of the first header called `name`; of one without a value, no bytes.
    pub fn find<'h>(headers: &'h [Self], name: &str) -> Option<&'h [u8]> {
        let header = headers.iter().find(|header| header.name == name.as_bytes())?;
        Some(header.value.as_deref().unwrap_or_default())
    }
}

/// What a message holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Original {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<RawHeader>,
}

/// What of the original message a dead letter holds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Key, payload and headers.
    Whole,
    /// Key and headers; the message had no payload.
    NoPayload,
    /// Nothing: it did not fit. Letters from before this field, which kept no headers, read so.
    #[default]
    LeftOut,
}

/// A header inside a dead letter.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct LetterHeader {
    /// What is no UTF-8 in it is replaced by U+FFFD.
    pub name: String,
    /// The name, Base64; only where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_base64: Option<String>,
    /// The value, Base64; null where the header has none.
    pub value_base64: Option<String>,
}

impl From<&RawHeader> for LetterHeader {
    fn from(header: &RawHeader) -> Self {
        let name = String::from_utf8_lossy(&header.name).into_owned();
        let is_text = name.as_bytes() == header.name;
        Self {
            name,
            name_base64: (!is_text).then(|| encode(&header.name)),
            value_base64: header.value.as_deref().map(encode),
        }
    }
}

impl LetterHeader {
    pub(super) fn to_raw(&self) -> Result<RawHeader> {
        let name = match &self.name_base64 {
            Some(text) => decode("headers.name_base64", text)?,
            None => self.name.as_bytes().to_vec(),
        };
        let value = self.value_base64.as_deref();
        let value = value.map(|text| decode("headers.value_base64", text)).transpose()?;
        Ok(RawHeader { name, value })
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(field: &'static str, text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|error| {
        invalid("a field of a dead letter is no Base64").with("field", field).because(error)
    })
}
