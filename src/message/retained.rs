//! How a dead letter retains the message that failed: key, payload and headers, byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::RawHeader;
use super::json::invalid;
use crate::error::Result;

/// The parts of the original message in a dead letter.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RetainedParts {
    /// Key, payload and headers.
    Whole,
    /// Key and headers; the message had no payload.
    NoPayload,
    /// Nothing: it did not fit. Also the letters from before this field, which kept no headers.
    #[default]
    LeftOut,
}

/// A header inside a dead letter.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct LetterHeader {
    /// Bytes that are not UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// The name, Base64; only where it is not UTF-8.
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
            name_base64: (!is_text).then(|| encode_base64(&header.name)),
            value_base64: header.value.as_deref().map(encode_base64),
        }
    }
}

impl LetterHeader {
    pub(super) fn to_raw(&self) -> Result<RawHeader> {
        let name = match &self.name_base64 {
            Some(text) => decode_base64("headers.name_base64", text)?,
            None => self.name.as_bytes().to_vec(),
        };
        let value = self.value_base64.as_deref();
        let value = value.map(|text| decode_base64("headers.value_base64", text)).transpose()?;
        Ok(RawHeader { name, value })
    }
}

pub(super) fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode_base64(field: &'static str, text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|error| {
        invalid("a field of a dead letter is not Base64")
            .with_context("field", field)
            .with_source(error)
    })
}
