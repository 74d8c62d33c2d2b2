//! Values that are never printed: [`Secret`], and the [`Properties`] whose names indicate a
//! secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Printed instead of a secret.
pub const MASK: &str = "******";

/// A string that prints as `******`.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-secret": true })
    }
}

/// librdkafka properties by name; secret values print as `******`.
///
/// Values may be YAML strings, numbers or booleans: librdkafka reads all of them as text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Whether the property `name` holds a secret, judged by its name.
    pub fn is_secret(name: &str) -> bool {
        const MARKS: [&str; 6] =
            ["password", "secret", "token", "key", "sasl.jaas", "oauthbearer.config"];
        // Locations are not secret: `ssl.key.location`, `sasl.oauthbearer.token.endpoint.url`.
        if name.ends_with(".location") || name.ends_with(".url") {
            return false;
        }
        MARKS.iter().any(|mark| name.contains(mark))
    }

    fn masked(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| {
            let shown = if Self::is_secret(name) { MASK } else { value.as_str() };
            (name.as_str(), shown)
        })
    }
}

impl Deref for Properties {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<BTreeMap<String, String>> for Properties {
    fn from(properties: BTreeMap<String, String>) -> Self {
        Self(properties)
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(properties: I) -> Self {
        Self(properties.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Properties {
    type Item = (&'a String, &'a String);
    type IntoIter = std::collections::btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.masked()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.masked())
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Scalar {
            Text(String),
            Boolean(bool),
            Integer(i64),
            Number(f64),
        }
        let scalars = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
        let text = |scalar| match scalar {
            Scalar::Text(text) => text,
            Scalar::Boolean(boolean) => boolean.to_string(),
            Scalar::Integer(integer) => integer.to_string(),
            Scalar::Number(number) => number.to_string(),
        };
        Ok(scalars.into_iter().map(|(name, scalar)| (name, text(scalar))).collect())
    }
}

impl JsonSchema for Properties {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Properties".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "additionalProperties": { "type": ["string", "number", "boolean"] },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_print_masked() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), MASK);
        assert_eq!(serde_json::to_string(&secret).unwrap(), format!("\"{MASK}\""));
        assert_eq!(secret.reveal(), "hunter2");
    }

    #[test]
    fn properties_mask_by_name() {
        for name in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.jaas.config",
        ] {
            assert!(Properties::is_secret(name), "{name}");
        }
        for name in ["sasl.username", "ssl.key.location", "sasl.oauthbearer.token.endpoint.url"] {
            assert!(!Properties::is_secret(name), "{name}");
        }
        let properties: Properties = [("sasl.password", "hunter2"), ("sasl.username", "cap")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        let printed = format!("{properties:?} {}", serde_json::to_string(&properties).unwrap());
        assert!(!printed.contains("hunter2") && printed.contains("cap"), "{printed}");
        assert_eq!(properties.get("sasl.password").map(String::as_str), Some("hunter2"));
    }

    #[test]
    fn properties_read_scalars_as_text() {
        let properties: Properties =
            serde_yaml_ng::from_str("{socket.keepalive.enable: true, a: 10, b: 0.5, c: x}")
                .unwrap();
        let values: Vec<&str> = properties.values().map(String::as_str).collect();
        assert_eq!(values, ["10", "0.5", "x", "true"]);
    }
}
