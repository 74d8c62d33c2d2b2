//! Converts records between JSON and Avro by an Avro schema: the fields are the same, but a time is
//! RFC 3339 text in JSON and a number of microseconds in Avro.
//!
//! Only the types in the schemas of `schemas/` are supported; records of other writers are first
//! resolved to one of these schemas, by Avro's own rules.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use jiff::Timestamp;
use serde_json::{Map, Value as Json};

use crate::error::{Error, ErrorKind, Result};

/// Most bytes that one length inside a record may claim; checked before memory is allocated.
const MAX_ALLOCATION: usize = 64 << 20;

/// The record `json` in Avro's binary encoding, without a frame.
///
/// # Errors
/// `ErrorKind::Internal` where it does not fit `schema`.
pub fn encode(json: &Json, schema: &Schema) -> Result<Vec<u8>> {
    let failed = |error| {
        Error::new(ErrorKind::Internal, "a record can't be written as Avro").with_source(error)
    };
    let value = to_avro(json, schema)?;
    let writer = GenericDatumWriter::builder(schema).build().map_err(failed)?;
    writer.write_value_to_vec(value).map_err(failed)
}

/// The record, written with the schema `written` and resolved to `wanted`.
///
/// # Errors
/// `ErrorKind::InvalidMessage` where the bytes are not such a record, or it can't be resolved.
pub fn decode(bytes: &[u8], written: &Schema, wanted: &Schema) -> Result<Json> {
    apache_avro::util::max_allocation_bytes(MAX_ALLOCATION);
    let invalid = |message| Error::new(ErrorKind::InvalidMessage, message);
    let failed = |error: apache_avro::Error| {
        invalid("the message is not a readable Avro record of its schema").with_source(error)
    };
    let mut rest = bytes;
    let reader = GenericDatumReader::builder(written).reader_schema(wanted).build();
    let value = reader.map_err(failed)?.read_value(&mut rest).map_err(failed)?;
    if !rest.is_empty() {
        return Err(
            invalid("there are bytes behind the Avro record").with_context("bytes", rest.len())
        );
    }
    to_json(value)
}

/// Whether a schema contains itself: such a record can nest as deep as it is long.
pub fn is_recursive(schema: &Schema) -> bool {
    fn within<'s>(schema: &'s Schema, above: &mut Vec<&'s apache_avro::schema::Name>) -> bool {
        match schema {
            Schema::Ref { name } => above.contains(&name),
            Schema::Array(array) => within(&array.items, above),
            Schema::Map(map) => within(&map.types, above),
            Schema::Union(union) => union.variants().iter().any(|inner| within(inner, above)),
            Schema::Record(record) => {
                above.push(&record.name);
                let found = record.fields.iter().any(|field| within(&field.schema, above));
                above.pop();
                found
            }
            _ => false,
        }
    }
    within(schema, &mut Vec::new())
}

fn to_avro(json: &Json, schema: &Schema) -> Result<Value> {
    let misfit = || {
        Error::new(ErrorKind::Internal, "a value does not fit its Avro schema")
            .with_context("schema", schema.canonical_form())
    };
    let value = match (schema, json) {
        (Schema::Union(_), Json::Null) => Some(Value::Union(0, Box::new(Value::Null))),
        // Null comes first in all unions of ours.
        (Schema::Union(union), _) => match union.variants() {
            [Schema::Null, inner] => Some(Value::Union(1, Box::new(to_avro(json, inner)?))),
            _ => None,
        },
        (Schema::Record(record), Json::Object(object)) => {
            let mut fields = Vec::with_capacity(record.fields.len());
            for field in &record.fields {
                let inner = object.get(&field.name).unwrap_or(&Json::Null);
                let inner = to_avro(inner, &field.schema)
                    .map_err(|error| error.with_context("field", &field.name))?;
                fields.push((field.name.clone(), inner));
            }
            Some(Value::Record(fields))
        }
        (Schema::Array(array), Json::Array(items)) => {
            let items = items.iter().map(|item| to_avro(item, &array.items));
            Some(Value::Array(items.collect::<Result<_>>()?))
        }
        (Schema::Map(map), Json::Object(object)) => {
            let entries =
                object.iter().map(|(name, inner)| Ok((name.clone(), to_avro(inner, &map.types)?)));
            Some(Value::Map(entries.collect::<Result<_>>()?))
        }
        (Schema::String, Json::String(text)) => Some(Value::String(text.clone())),
        (Schema::TimestampMicros, Json::String(text)) => {
            let time = text.parse::<Timestamp>().ok();
            time.map(|time| Value::TimestampMicros(time.as_microsecond()))
        }
        (Schema::Long, Json::Number(number)) => number.as_i64().map(Value::Long),
        (Schema::Int, Json::Number(number)) => {
            number.as_i64().and_then(|number| i32::try_from(number).ok()).map(Value::Int)
        }
        #[expect(clippy::cast_possible_truncation, reason = "it was an f32 before it was JSON")]
        (Schema::Float, Json::Number(number)) => {
            number.as_f64().map(|number| Value::Float(number as f32))
        }
        // JSON has no other form for a value that is not a number.
        (Schema::Float, Json::Null) => Some(Value::Float(f32::NAN)),
        _ => None,
    };
    value.ok_or_else(misfit)
}

fn to_json(value: Value) -> Result<Json> {
    Ok(match value {
        Value::Null => Json::Null,
        Value::Union(_, inner) => to_json(*inner)?,
        Value::String(text) => text.into(),
        Value::Int(number) => number.into(),
        Value::Long(number) => number.into(),
        Value::Float(number) => number.into(),
        Value::TimestampMicros(micros) => {
            let time = Timestamp::from_microsecond(micros).map_err(|error| {
                Error::new(ErrorKind::InvalidMessage, "a time is out of range").with_source(error)
            })?;
            format!("{time:.6}").into()
        }
        Value::Array(items) => items.into_iter().map(to_json).collect::<Result<_>>()?,
        Value::Map(entries) => {
            let entries = entries.into_iter().map(|(name, inner)| Ok((name, to_json(inner)?)));
            Json::Object(entries.collect::<Result<Map<_, _>>>()?)
        }
        Value::Record(fields) => {
            let fields = fields.into_iter().map(|(name, inner)| Ok((name, to_json(inner)?)));
            Json::Object(fields.collect::<Result<Map<_, _>>>()?)
        }
        other => {
            return Err(Error::new(ErrorKind::Internal, "an Avro type is not supported")
                .with_context("value", format!("{other:.100?}")));
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::Kind;
    use super::*;

    fn parse(schema: &Json) -> Schema {
        Schema::parse(schema).unwrap()
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let letter = json!({
            "id": "a", "uri": null, "code": "invalid_message", "reason": "r", "stage": "consume",
            "attempts": 1, "source_topic": "t", "source_partition": 3,
            "source_offset": 5_000_000_000_i64, "source_index": 4_294_967_295_u32,
            "failed_at": "2026-11-25T12:00:00.000001Z", "original": "whole",
            "payload_base64": "", "key_base64": "aw==",
            "headers": [{"name": "n", "name_base64": null, "value_base64": "dg=="}],
        });
        let schema = Kind::DeadLetter.avro();
        let bytes = encode(&letter, schema).unwrap();
        assert_eq!(decode(&bytes, schema, schema).unwrap(), letter);
        for end in 0..bytes.len() {
            let error = decode(&bytes[..end], schema, schema).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
        }
    }

    #[test]
    fn an_absent_field_is_null_and_nan_is_kept() {
        let schema = parse(&json!({"type": "record", "name": "R", "fields": [
            {"name": "score", "type": "float"},
            {"name": "more", "type": ["null", {"type": "array", "items": "float"}]},
        ]}));
        let bytes = encode(&json!({"score": null}), &schema).unwrap();
        assert_eq!(bytes[..4], f32::NAN.to_le_bytes());
        assert_eq!(decode(&bytes, &schema, &schema).unwrap(), json!({"score": null, "more": null}));
    }

    #[test]
    fn a_misfit_is_an_error_that_names_the_field() {
        let schema = parse(&json!({"type": "record", "name": "R", "fields": [
            {"name": "number", "type": "int"}]}));
        for wrong in [json!({"number": "1"}), json!({"number": 2_147_483_648_i64}), json!({})] {
            let error = encode(&wrong, &schema).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.to_string().contains("field: number"), "{error}");
        }
    }

    #[test]
    fn schemas_that_contain_themselves_are_known() {
        let list = json!({"type": "record", "name": "L", "fields": [
            {"name": "next", "type": ["null", "L"]}]});
        assert!(is_recursive(&parse(&list)));
        let twice = json!({"type": "record", "name": "R", "fields": [
            {"name": "a", "type": {"type": "record", "name": "I", "fields": []}},
            {"name": "b", "type": {"type": "map", "values": "I"}}]});
        assert!(!is_recursive(&parse(&twice)), "a name may be used again");
        for kind in Kind::ALL {
            assert!(!is_recursive(kind.avro()));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_end_the_process(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for kind in Kind::ALL {
                let _ = decode(&bytes, kind.avro(), Kind::Request.avro());
                let _ = decode(&bytes, kind.avro(), kind.avro());
            }
        }
    }
}
