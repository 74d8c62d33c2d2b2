//! The fields of the configuration, from the JSON Schema of its types: their names in files and in
//! the environment, their types, ranges and defaults.
//!
//! Values are validated before the sources are merged, so that an error can name the source.

use std::net::SocketAddr;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use serde_yaml_ng::Value;

use super::Config;
use super::secret::MASK;

/// Prefix of the environment variables that set fields.
pub const PREFIX: &str = "FUSIONCAP_";

/// One field, such as `kafka.brokers`.
#[derive(Debug)]
pub struct Field {
    pub path: String,
    pub value_type: ValueType,
    /// The doc comment of the Rust field.
    pub description: String,
    pub default: Option<Json>,
    pub required: bool,
    /// Whether the field may be empty.
    pub nullable: bool,
    /// Whether the value must never be printed.
    pub secret: bool,
    /// Allowed values in words, if the type does not describe them.
    allowed: Option<String>,
}

/// The type and range of a field.
#[derive(Debug)]
pub enum ValueType {
    /// A string of at least `min_length` bytes.
    Text {
        min_length: u64,
    },
    /// One of the strings `options`.
    Choice {
        options: Vec<String>,
    },
    /// An address and a port.
    Address,
    Integer {
        min: u64,
        max: u64,
    },
    Boolean,
    /// A list of at least `min_length` strings, each one of `options` unless these are empty.
    List {
        min_length: u64,
        options: Vec<String>,
    },
    /// Strings, numbers or booleans by arbitrary names.
    Map,
}

/// A section, such as `kafka`.
#[derive(Debug)]
pub struct Section {
    pub name: String,
    pub description: String,
}

/// All sections and fields, sorted by name.
#[derive(Debug)]
pub struct Schema {
    pub sections: Vec<Section>,
    pub fields: Vec<Field>,
}

pub static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::read);

impl Schema {
    fn read() -> Self {
        let settings =
            SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let root = settings.into_generator().into_root_schema_for::<Config>().to_value();
        let mut schema = Self { sections: Vec::new(), fields: Vec::new() };
        for (section, inner) in entries(&root) {
            schema
                .sections
                .push(Section { name: section.clone(), description: description(inner) });
            let required = strings(&inner["required"]);
            for (name, field) in entries(inner) {
                let path = format!("{section}.{name}");
                schema.fields.push(Field::read(path, field, required.contains(name)));
            }
        }
        schema
    }

    pub fn find(&self, path: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.path == path)
    }

    /// Splits a path into its field and, below a map, the key: `kafka.properties` and
    /// `security.protocol`.
    pub fn resolve<'p>(&self, path: &'p str) -> Option<(&Field, Option<&'p str>)> {
        if let Some(field) = self.find(path) {
            return Some((field, None));
        }
        self.fields.iter().filter(|field| matches!(field.value_type, ValueType::Map)).find_map(
            |field| {
                let key = path.strip_prefix(field.path.as_str())?.strip_prefix('.')?;
                (!key.is_empty()).then_some((field, Some(key)))
            },
        )
    }

    /// A hint for an unknown path: the most similar field, the fields of its section, or the
    /// sections.
    pub fn suggest(&self, path: &str) -> (&'static str, String) {
        let paths = self.fields.iter().map(|field| field.path.as_str());
        if let Some(nearest) = nearest(path, paths) {
            return ("did you mean", nearest.to_owned());
        }
        let section = path.split('.').next().unwrap_or(path);
        let prefix = format!("{section}.");
        let siblings: Vec<&str> =
            self.fields.iter().filter_map(|field| field.path.strip_prefix(&prefix)).collect();
        if siblings.is_empty() {
            let names: Vec<&str> = self.sections.iter().map(|known| known.name.as_str()).collect();
            return ("sections", names.join(" "));
        }
        ("fields", siblings.join(" "))
    }
}

/// The candidate most similar to `name`, if any is similar enough.
pub fn nearest<'c>(name: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    const MIN_SIMILARITY: f64 = 0.75;
    candidates
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

impl Field {
    fn read(path: String, schema: &Json, required: bool) -> Self {
        let types = strings(&schema["type"]);
        let options = strings(&schema["enum"]);
        let value_type = match types.first().map(String::as_str) {
            Some("string") if !options.is_empty() => ValueType::Choice { options },
            Some("integer") => ValueType::Integer {
                min: schema["minimum"].as_u64().unwrap_or(0),
                max: schema["maximum"].as_u64().unwrap_or(u64::MAX),
            },
            Some("boolean") => ValueType::Boolean,
            Some("array") => ValueType::List {
                min_length: schema["minItems"].as_u64().unwrap_or(0),
                options: strings(&schema["items"]["enum"]),
            },
            Some("object") => ValueType::Map,
            _ if schema["format"] == "socket-address" => ValueType::Address,
            _ => ValueType::Text { min_length: schema["minLength"].as_u64().unwrap_or(0) },
        };
        Self {
            path,
            value_type,
            description: description(schema),
            default: schema.get("default").filter(|value| !value.is_null()).cloned(),
            required,
            nullable: types.iter().any(|name| name == "null"),
            secret: schema["x-secret"] == true,
            allowed: schema["x-allowed"].as_str().map(str::to_owned),
        }
    }

    /// The environment variable that sets the field: `FUSIONCAP_KAFKA__BROKERS`.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.path.to_uppercase().replace('.', "__"))
    }

    /// The allowed values, in words.
    pub fn allowed(&self) -> String {
        if let Some(words) = &self.allowed {
            return words.clone();
        }
        match &self.value_type {
            ValueType::Text { min_length: 0 } => "a string".into(),
            ValueType::Text { .. } => "a string that is not empty".into(),
            ValueType::Choice { options } => options.join(" or "),
            ValueType::Address => "address:port, such as 0.0.0.0:8080".into(),
            ValueType::Integer { min, max } => format!("an integer from {min} to {max}"),
            ValueType::Boolean => "true or false".into(),
            ValueType::List { options, .. } if options.is_empty() => "a list of strings".into(),
            ValueType::List { options, .. } => format!("a list of {}", options.join(", ")),
            ValueType::Map => "a mapping of names to strings, numbers or booleans".into(),
        }
    }

    /// Checks the type and the range of `value`; the error is [`Field::allowed`].
    pub fn validate(&self, value: &Value) -> Result<(), String> {
        if self.is_valid(value) { Ok(()) } else { Err(self.allowed()) }
    }

    fn is_valid(&self, value: &Value) -> bool {
        match (&self.value_type, value) {
            (_, Value::Null) => self.nullable,
            (ValueType::Text { min_length }, Value::String(text)) => {
                text.len() as u64 >= *min_length
            }
            (ValueType::Choice { options }, Value::String(text)) => options.contains(text),
            (ValueType::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (ValueType::Integer { min, max }, Value::Number(number)) => {
                number.as_u64().is_some_and(|integer| (*min..=*max).contains(&integer))
            }
            (ValueType::Boolean, Value::Bool(_)) => true,
            (ValueType::List { min_length, options }, Value::Sequence(items)) => {
                let known =
                    |text: &str| options.is_empty() || options.iter().any(|option| option == text);
                items.len() as u64 >= *min_length
                    && items.iter().all(|item| item.as_str().is_some_and(known))
            }
            (ValueType::Map, Value::String(_) | Value::Number(_) | Value::Bool(_)) => true,
            _ => false,
        }
    }

    /// Parses the text of a variable or a flag as the field's type. Text of another type stays text,
    /// which [`Field::validate`] refuses. Empty text unsets a field without a default.
    pub fn parse(&self, text: &str) -> Value {
        if text.is_empty() && self.nullable {
            return Value::Null;
        }
        match &self.value_type {
            ValueType::Integer { .. } => {
                text.trim().parse::<i64>().map_or_else(|_| text.into(), Value::from)
            }
            ValueType::Boolean => {
                text.trim().parse::<bool>().map_or_else(|_| text.into(), Value::from)
            }
            ValueType::List { .. } => parse_list(text),
            _ => text.into(),
        }
    }

    /// `value` for an error message, masked if it is secret.
    pub fn display(&self, value: &Value) -> String {
        if self.secret { MASK.into() } else { display_value(value) }
    }
}

/// A flow sequence (`[a, b]`), or items separated by commas.
fn parse_list(text: &str) -> Value {
    if text.trim_start().starts_with('[') {
        return serde_yaml_ng::from_str(text).unwrap_or_else(|_| text.into());
    }
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect()
}

/// A value on one line of limited length, strings in quotes.
pub fn display_value(value: &Value) -> String {
    const MAX_CHARS: usize = 80;
    let line = match value {
        Value::Null => "empty".to_owned(),
        Value::String(text) => format!("'{}'", text.escape_debug()),
        other => serde_json::to_string(other).unwrap_or_else(|_| "not a scalar".into()),
    };
    if line.chars().count() <= MAX_CHARS {
        return line;
    }
    line.chars().take(MAX_CHARS).chain("...".chars()).collect()
}

fn entries(schema: &Json) -> impl Iterator<Item = (&String, &Json)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn description(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A string as a list of one, or the strings of a list.
fn strings(value: &Json) -> Vec<String> {
    match value {
        Json::String(text) => vec![text.clone()],
        Json::Array(items) => items.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_described_and_holds_its_default() {
        assert!(SCHEMA.fields.len() > 30);
        for section in &SCHEMA.sections {
            assert!(!section.description.is_empty(), "{}", section.name);
        }
        for field in &SCHEMA.fields {
            assert!(!field.description.is_empty(), "{}", field.path);
            if let Some(default) = &field.default
                && !matches!(field.value_type, ValueType::Map)
            {
                let value = serde_yaml_ng::to_value(default).unwrap();
                assert!(field.validate(&value).is_ok(), "{}: {default}", field.path);
            }
            if let ValueType::Integer { max, .. } = field.value_type {
                assert!(max < u64::MAX, "{} has no range", field.path);
            }
        }
        let required: Vec<&str> = SCHEMA
            .fields
            .iter()
            .filter(|field| field.required)
            .map(|field| field.path.as_str())
            .collect();
        assert_eq!(required, ["kafka.brokers", "model.path"]);
    }

    #[test]
    fn types_and_ranges_are_held() {
        let mode = SCHEMA.find("decode.mode").unwrap();
        mode.validate(&"exact".into()).unwrap();
        assert_eq!(mode.validate(&"exactly".into()).unwrap_err(), "exact or fast");
        let field = SCHEMA.find("batch.size").unwrap();
        assert_eq!(field.variable(), "FUSIONCAP_BATCH__SIZE");
        assert_eq!(field.allowed(), "an integer from 1 to 1024");
        for (text, expected) in [("1", true), ("1024", true), ("0", false), ("x", false)] {
            assert_eq!(field.validate(&field.parse(text)).is_ok(), expected, "{text}");
        }
        let providers = SCHEMA.find("runtime.providers").unwrap();
        for (text, expected) in
            [("cuda, cpu", true), ("[cpu]", true), ("", false), ("gpu", false), ("[cpu", false)]
        {
            assert_eq!(providers.validate(&providers.parse(text)).is_ok(), expected, "{text}");
        }
        assert!(SCHEMA.find("s3.endpoint").unwrap().parse("").is_null());
        assert!(SCHEMA.find("s3.secret_access_key").unwrap().secret);
    }

    #[test]
    fn unknown_paths_get_a_suggestion() {
        assert_eq!(SCHEMA.suggest("kafka.broker"), ("did you mean", "kafka.brokers".into()));
        assert_eq!(SCHEMA.suggest("batch.colour"), ("fields", "linger_ms size".into()));
        let (what, names) = SCHEMA.suggest("colour");
        assert_eq!((what, names.contains("runtime")), ("sections", true));
    }

    #[test]
    fn a_path_below_a_map_has_a_key() {
        let (field, key) = SCHEMA.resolve("kafka.properties.security.protocol").unwrap();
        assert_eq!((field.path.as_str(), key), ("kafka.properties", Some("security.protocol")));
        assert!(SCHEMA.resolve("kafka.properties.").is_none());
    }
}
