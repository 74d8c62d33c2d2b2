//! The schemas to register, which are the files of `schemas/`, and their subjects.

use std::sync::LazyLock;

use super::client::{AVRO, Schema};
use crate::config::{Format, SubjectNameStrategy};
use apache_avro::Schema as Avro;

/// The draft that the files name.
const WRITTEN_FOR: &str = "https://json-schema.org/draft/2020-12/schema";
/// The draft that registries support; the files use nothing newer.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

/// Kinds of records that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Caption,
    DeadLetter,
    Marker,
    Request,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Self::Caption, Self::DeadLetter, Self::Marker, Self::Request];

    fn texts(self) -> (&'static str, &'static str) {
        macro_rules! both {
            ($name:literal) => {
                (
                    include_str!(concat!("../../schemas/", $name, ".v1.avsc")),
                    include_str!(concat!("../../schemas/", $name, ".v1.schema.json")),
                )
            };
        }
        match self {
            Self::Caption => both!("caption"),
            Self::DeadLetter => both!("dead-letter"),
            Self::Marker => both!("dead-letter-marker"),
            Self::Request => both!("image-request"),
        }
    }

    /// The record's full name, in both formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "io.github.fusioncap.Caption",
            Self::DeadLetter => "io.github.fusioncap.DeadLetter",
            Self::Marker => "io.github.fusioncap.DeadLetterMarker",
            Self::Request => "io.github.fusioncap.ImageRequest",
        }
    }

    pub fn avro(self) -> &'static Avro {
        static PARSED: LazyLock<[Avro; 4]> = LazyLock::new(|| {
            Kind::ALL.map(|kind| {
                Avro::parse_str(kind.texts().0).unwrap_or_else(|error| {
                    // Held by a test of this file.
                    unreachable!("{}: {error}", kind.name())
                })
            })
        });
        &PARSED[self as usize]
    }

    /// The schema to register; None for plain JSON.
    pub fn schema(self, format: Format) -> Option<Schema> {
        let (avro, json) = self.texts();
        let (text, schema_type) = match format {
            Format::Json => return None,
            Format::Avro => (avro.to_owned(), AVRO),
            Format::JsonSchema => (json.replace(WRITTEN_FOR, DRAFT), "JSON"),
        };
        Some(Schema {
            schema: text,
            schema_type: Some(schema_type.to_owned()),
            references: Vec::new(),
        })
    }

    /// Markers share a topic with dead letters, and `<topic>-value` is the letters'.
    pub fn subject(self, strategy: SubjectNameStrategy, topic: &str) -> String {
        let name = self.name();
        match strategy {
            SubjectNameStrategy::RecordName => name.to_owned(),
            SubjectNameStrategy::TopicName if self != Self::Marker => format!("{topic}-value"),
            SubjectNameStrategy::TopicName | SubjectNameStrategy::TopicRecordName => {
                format!("{topic}-{name}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// Whether a field may be null, and its type without null.
    fn avro_type(field: &Value) -> (bool, String) {
        let whole = &field["type"];
        let (nullable, inner) = match whole.as_array() {
            Some(branches) => {
                assert_eq!(branches[0], "null", "{field}");
                assert_eq!((branches.len(), &field["default"]), (2, &Value::Null), "{field}");
                (true, &branches[1])
            }
            None => (false, whole),
        };
        let name = inner.as_str().or(inner["logicalType"].as_str()).or(inner["type"].as_str());
        (nullable, name.unwrap().to_owned())
    }

    fn json_type(field: &Value, required: bool) -> (bool, String) {
        let nullable =
            field["type"].as_array().is_some_and(|types| types.contains(&json("\"null\"")));
        let name = match field["type"].as_array() {
            Some(types) => types.iter().find(|name| *name != "null").unwrap(),
            None => &field["type"],
        };
        let name = name.as_str().unwrap();
        (nullable || !(required || name == "object"), name.to_owned())
    }

    fn assert_same(place: &str, record: &Value, object: &Value) {
        let properties = object["properties"].as_object().unwrap();
        let required: BTreeSet<&str> = object["required"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        let fields = record["fields"].as_array().unwrap();
        let names: BTreeSet<&str> =
            fields.iter().map(|field| field["name"].as_str().unwrap()).collect();
        assert_eq!(names, properties.keys().map(String::as_str).collect(), "{place}");
        for field in fields {
            let name = field["name"].as_str().unwrap();
            let property = &properties[name];
            assert!(field["doc"].as_str().is_some_and(|doc| doc.len() > 5), "{place}.{name}");
            let (null, found) = avro_type(field);
            let (wanted_null, wanted) = json_type(property, required.contains(name));
            assert_eq!(null, wanted_null, "{place}.{name}: null");
            let fits: &[&str] = match (wanted.as_str(), property["format"].as_str()) {
                ("string", Some("date-time")) => &["timestamp-micros"],
                ("string", _) => &["string"],
                ("integer", _) => &["int", "long"],
                ("number", _) => &["float"],
                ("array", _) => &["array"],
                ("object", _) => &["map"],
                other => panic!("{place}.{name}: {other:?}"),
            };
            assert!(fits.contains(&found.as_str()), "{place}.{name} is {found}");
            let items = &field["type"]["items"];
            if items["type"] == "record" {
                assert_same(&format!("{place}.{name}"), items, &property["items"]);
            }
        }
    }

    #[test]
    fn both_languages_have_the_same_fields() {
        for kind in Kind::ALL {
            let (avro, object) = kind.texts();
            assert_same(kind.name(), &json(avro), &json(object));
        }
    }

    #[test]
    fn the_names_are_the_schemas_own() {
        for kind in Kind::ALL {
            assert_eq!(kind.avro().name().unwrap().fullname(None), kind.name());
        }
    }

    /// Keywords of later drafts, which registries of draft 7 would silently ignore.
    #[test]
    fn the_json_schemas_hold_in_draft_7() {
        let later = [
            "$defs",
            "$dynamicRef",
            "$anchor",
            "unevaluatedProperties",
            "unevaluatedItems",
            "dependentRequired",
            "dependentSchemas",
            "prefixItems",
            "minContains",
            "maxContains",
        ];
        for kind in Kind::ALL {
            let schema = kind.schema(Format::JsonSchema).unwrap().schema;
            assert!(schema.contains(DRAFT), "{schema}");
            for keyword in later {
                assert!(!schema.contains(&format!("\"{keyword}\"")), "{}: {keyword}", kind.name());
            }
        }
    }

    #[test]
    fn subjects_are_named_as_elsewhere() {
        use SubjectNameStrategy::{RecordName, TopicName, TopicRecordName};
        let of = |kind: Kind, strategy| kind.subject(strategy, "t");
        assert_eq!(of(Kind::Caption, TopicName), "t-value");
        assert_eq!(of(Kind::Caption, RecordName), "io.github.fusioncap.Caption");
        assert_eq!(of(Kind::Caption, TopicRecordName), "t-io.github.fusioncap.Caption");
        assert_eq!(of(Kind::Marker, TopicName), "t-io.github.fusioncap.DeadLetterMarker");
    }
}
