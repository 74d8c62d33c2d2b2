//! S3 event notifications as AWS, MinIO and Ceph send them: several records in one message.
//!
//! Object keys in notifications are form-encoded ("red flower.jpg" is `red+flower.jpg`), as AWS
//! documents under "Event message structure".

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;

use super::image_request::{ImageRequest, Requests};
use super::json::invalid;
use super::position::SourcePosition;
use crate::error::Result;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    event_name: String,
    s3: Entity,
}

#[derive(Debug, Deserialize)]
struct Entity {
    bucket: Bucket,
    object: Object,
}

#[derive(Debug, Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    key: String,
    e_tag: Option<String>,
    version_id: Option<String>,
}

/// Whether `message` is a notification, a single record of one, or the test event that AWS sends
/// when notifications are set up.
pub fn is_notification(message: &Value) -> bool {
    message.get("Records").is_some() || is_record(message) || is_test(message)
}

fn is_record(message: &Value) -> bool {
    message.get("eventName").is_some() && message.get("s3").is_some()
}

fn is_test(message: &Value) -> bool {
    message.get("Event").and_then(Value::as_str) == Some("s3:TestEvent")
}

/// The images that the records create; records of other events are skipped and counted.
pub fn parse(mut message: Value, source: &SourcePosition) -> Result<Requests> {
    if is_test(&message) {
        return Ok(Requests { images: Vec::new(), skipped: 1 });
    }
    let records = match message.get_mut("Records") {
        Some(Value::Array(records)) => std::mem::take(records),
        Some(_) => return Err(invalid("Records is not a list")),
        None => vec![message],
    };
    let mut requests = Requests::default();
    for (index, record) in records.into_iter().enumerate() {
        let name = record.get("eventName").and_then(Value::as_str).unwrap_or_default();
        if !name.is_empty() && !creates_object(name) {
            requests.skipped += 1;
            continue;
        }
        let fields: Record = serde_json::from_value(record).map_err(|error| {
            invalid("an event record is not understood")
                .with_context("record", index)
                .with_source(error)
        })?;
        if !creates_object(&fields.event_name) {
            return Err(invalid("an event record has no event name").with_context("record", index));
        }
        let id = source.id(requests.images.len());
        requests.images.push(image(fields, index, id)?);
    }
    Ok(requests)
}

/// AWS and Ceph write `ObjectCreated:Put`, MinIO `s3:ObjectCreated:Put`.
fn creates_object(event: &str) -> bool {
    event.strip_prefix("s3:").unwrap_or(event).starts_with("ObjectCreated:")
}

fn image(record: Record, index: usize, id: String) -> Result<ImageRequest> {
    let Entity { bucket, object } = record.s3;
    let spaced = object.key.replace('+', " ");
    let key = percent_decode_str(&spaced).decode_utf8().map(Cow::into_owned).map_err(|error| {
        invalid("an object key is not UTF-8").with_context("record", index).with_source(error)
    })?;
    if bucket.name.is_empty() || key.is_empty() {
        return Err(
            invalid("an event record does not name an object").with_context("record", index)
        );
    }
    let present = |text: Option<String>| text.filter(|value| !value.is_empty());
    Ok(ImageRequest {
        id,
        bucket: bucket.name,
        key,
        version_id: present(object.version_id),
        etag: present(object.e_tag).map(|etag| etag.trim_matches('"').to_owned()),
        attributes: BTreeMap::new(),
    })
}
