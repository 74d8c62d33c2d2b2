//! Merges the file, the environment and the flags into one validated configuration.
//!
//! Each source becomes assignments (`Layers::set`): a field, its value and its origin. A later
//! assignment wins. Every value is validated when it is read, so that an error names its source;
//! [`super::validate`] then checks the rules between fields.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::environment::{field_path, is_reserved, unknown_variable};
use super::field::{Field, PREFIX, SCHEMA, ValueType, display_value};
use super::line::find_line;
use super::origin::Origin;
use super::secret::{MASK, Properties};
use super::{Config, validate};
use crate::error::{Error, ErrorKind, Result};

/// Fields set by flags, which override the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    values: Vec<(String, &'static str, String)>,
}

impl Overrides {
    /// Sets the field at `path` (`kafka.brokers`) to the value of `flag` (`--brokers`).
    pub fn set(&mut self, path: impl Into<String>, flag: &'static str, value: impl Into<String>) {
        self.values.push((path.into(), flag, value.into()));
    }
}

impl Config {
    /// Reads the YAML file at `path`, if any, then the environment, then `flags`.
    ///
    /// # Errors
    /// `ErrorKind::Config`, with the field, its value, the allowed values and the source.
    pub fn load(path: Option<&Path>, flags: &Overrides) -> Result<Self> {
        Self::load_layers(path, std::env::vars_os(), flags)
    }

    fn load_layers(
        path: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        flags: &Overrides,
    ) -> Result<Self> {
        Layers::read(path, environment, flags)?.finish()
    }
}

/// The values that the sources have set so far.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// By field path and, below a map, key.
    values: BTreeMap<(&'static str, Option<String>), (Value, Origin)>,
}

impl Layers {
    pub(super) fn read(
        path: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        flags: &Overrides,
    ) -> Result<Self> {
        let mut layers = Self::default();
        if let Some(file) = path {
            layers.read_file(file)?;
        }
        layers.read_environment(environment)?;
        for (field, flag, value) in &flags.values {
            layers.set_text(field, value, Origin::Flag(flag))?;
        }
        Ok(layers)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let unreadable = |error: Box<dyn std::error::Error + Send + Sync>,
                          message: &'static str| {
            Error::new(ErrorKind::Config, message)
                .with_context("path", path.display())
                .with_source(error)
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| unreadable(error.into(), "can't read the configuration file"))?;
        let not_yaml = |error: serde_yaml_ng::Error| {
            unreadable(error.into(), "the configuration file is not valid YAML")
        };
        let mut root: Value = serde_yaml_ng::from_str(&text).map_err(not_yaml)?;
        root.apply_merge().map_err(not_yaml)?;
        let origin =
            |keys: &[&str]| Origin::File { path: path.to_path_buf(), line: find_line(&text, keys) };
        for (section, inner) in mapping_entries("the file", &root, || origin(&[]))? {
            let section_origin = || origin(&[section]);
            if !SCHEMA.sections.iter().any(|known| known.name == section) {
                return Err(unknown_field(section, &section_origin()));
            }
            for (name, value) in mapping_entries(section, inner, section_origin)? {
                self.set(&format!("{section}.{name}"), value.clone(), |key| match key {
                    Some(key) => origin(&[section, name, key]),
                    None => origin(&[section, name]),
                })?;
            }
        }
        Ok(())
    }

    fn read_environment(
        &mut self,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<()> {
        // In a fixed order: a map's own variable before the variables of its keys.
        let variables: BTreeMap<OsString, OsString> = environment
            .filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
            .collect();
        for (raw_name, raw_value) in variables {
            let name = raw_name.to_string_lossy();
            if is_reserved(&name) {
                continue;
            }
            let Some(path) = field_path(&name) else {
                return Err(unknown_variable(&name));
            };
            let Some(text) = raw_value.to_str() else {
                return Err(Error::new(
                    ErrorKind::Config,
                    "an environment variable is not valid UTF-8",
                )
                .with_context("name", name));
            };
            self.set_text(&path, text, Origin::Variable(name.into_owned()))?;
        }
        Ok(())
    }

    /// Sets the field at `path` from the text of a variable or a flag.
    fn set_text(&mut self, path: &str, text: &str, origin: Origin) -> Result<()> {
        let value = match SCHEMA.resolve(path) {
            Some((field, None)) if matches!(field.value_type, ValueType::Map) => {
                serde_yaml_ng::from_str(text).unwrap_or_else(|_| text.into())
            }
            Some((field, None)) => field.parse(text),
            _ => text.into(),
        };
        self.set(path, value, |_| origin.clone())
    }

    /// Sets the field at `path`, or the keys of `value` if the field is a map. `origin` returns the
    /// source of the field or of a key.
    fn set(
        &mut self,
        path: &str,
        value: Value,
        origin: impl Fn(Option<&str>) -> Origin,
    ) -> Result<()> {
        let Some((field, map_key)) = SCHEMA.resolve(path) else {
            return Err(unknown_field(path, &origin(None)));
        };
        if matches!(field.value_type, ValueType::Map) && map_key.is_none() {
            for (key, inner) in mapping_entries(path, &value, || origin(None))? {
                self.check_and_set(field, Some(key), inner.clone(), origin(Some(key)))?;
            }
            return Ok(());
        }
        self.check_and_set(field, map_key, value, origin(None))
    }

    fn check_and_set(
        &mut self,
        field: &'static Field,
        map_key: Option<&str>,
        value: Value,
        origin: Origin,
    ) -> Result<()> {
        if let Err(allowed) = field.validate(&value) {
            let path = full_path(field, map_key);
            let shown = display(field, map_key, &value);
            let scalar = "a string, a number or a boolean";
            let allowed = if map_key.is_some() { scalar } else { &allowed };
            return Err(invalid_value(&path, &shown, allowed).with_context("set by", origin));
        }
        self.values.insert((&field.path, map_key.map(str::to_owned)), (value, origin));
        Ok(())
    }

    /// Merges the layers, fills in the defaults and checks the rules between fields.
    fn finish(self) -> Result<Config> {
        let config: Config = self.deserialize(self.merged("")?)?;
        validate::check(&config).map_err(|problem| self.rule_error(problem))?;
        Ok(config)
    }

    /// One section; its required fields must be set.
    pub(super) fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let section = self.merged(&format!("{name}."))?.remove(name);
        self.deserialize(section.unwrap_or_else(|| Mapping::new().into()))
    }

    fn deserialize<T: DeserializeOwned>(&self, value: impl Into<Value>) -> Result<T> {
        // Missing required fields are reported before; other sections may be absent.
        serde_yaml_ng::from_value(value.into()).map_err(|error| {
            Error::new(ErrorKind::Config, "the configuration is inconsistent").with_source(error)
        })
    }

    /// All values as one mapping. The required fields whose paths start with `needed` must be set.
    fn merged(&self, needed: &str) -> Result<Mapping> {
        let mut root = Mapping::new();
        for ((path, map_key), (value, _)) in &self.values {
            let mut target = &mut root;
            let mut keys: Vec<&str> = path.split('.').collect();
            keys.extend(map_key.as_deref());
            let Some((last, parents)) = keys.split_last() else { continue };
            for key in parents {
                let inner =
                    target.entry((*key).into()).or_insert_with(|| Value::Mapping(Mapping::new()));
                let Value::Mapping(mapping) = inner else {
                    return Err(Error::new(ErrorKind::Internal, "a section is not a mapping")
                        .with_context("field", path));
                };
                target = mapping;
            }
            target.insert((*last).into(), value.clone());
        }
        let is_needed = |field: &&Field| field.required && field.path.starts_with(needed);
        for field in SCHEMA.fields.iter().filter(is_needed) {
            if !self.values.contains_key(&(field.path.as_str(), None)) {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("{} is required but not set", field.path),
                )
                .with_context("allowed", field.allowed())
                .with_context("set it by", format!("the file, {} or a flag", field.variable())));
            }
        }
        Ok(root)
    }

    /// The error for a broken rule, with the source of the field.
    pub(super) fn rule_error(&self, problem: validate::Problem) -> Error {
        let error = invalid_value(&problem.path, &problem.value, &problem.allowed);
        let known = SCHEMA.resolve(&problem.path).and_then(|(field, map_key)| {
            self.values.get(&(field.path.as_str(), map_key.map(str::to_owned)))
        });
        match known {
            Some((_, origin)) => error.with_context("set by", origin),
            None => error.with_context("set by", "default"),
        }
    }
}

/// The entries of a mapping with string keys; null counts as an empty mapping.
fn mapping_entries<'v>(
    path: &str,
    value: &'v Value,
    origin: impl Fn() -> Origin,
) -> Result<Vec<(&'v str, &'v Value)>> {
    let entries = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(entries) => entries,
        other => {
            return Err(invalid_value(path, &display_value(other), "a mapping")
                .with_context("set by", origin()));
        }
    };
    entries
        .iter()
        .map(|(key, inner)| match key.as_str() {
            Some(name) => Ok((name, inner)),
            None => {
                Err(Error::new(ErrorKind::Config, format!("{path} has a key that is not a string"))
                    .with_context("key", display_value(key))
                    .with_context("set by", origin()))
            }
        })
        .collect()
}

fn invalid_value(path: &str, value: &str, allowed: &str) -> Error {
    Error::new(ErrorKind::Config, format!("{path} can't be {value}"))
        .with_context("allowed", allowed)
}

fn unknown_field(path: &str, origin: &Origin) -> Error {
    let (what, names) = SCHEMA.suggest(path);
    Error::new(ErrorKind::Config, format!("there is no field {path}"))
        .with_context(what, names)
        .with_context("set by", origin)
}

fn full_path(field: &Field, map_key: Option<&str>) -> String {
    match map_key {
        Some(key) => format!("{}.{key}", field.path),
        None => field.path.clone(),
    }
}

fn display(field: &Field, map_key: Option<&str>, value: &Value) -> String {
    match map_key {
        Some(key) if Properties::is_secret(key) => MASK.into(),
        _ => field.display(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "kafka: {brokers: 'a:1'}\nmodel: {path: m}\n";

    fn load(text: &str, environment: &[(&str, &str)], flags: &Overrides) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("worker.yaml");
        std::fs::write(&file, text).unwrap();
        let variables = environment.iter().map(|(name, value)| (name.into(), value.into()));
        Config::load_layers(Some(&file), variables, flags)
    }

    fn refusal(text: &str, environment: &[(&str, &str)]) -> String {
        let error = load(text, environment, &Overrides::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.chain()
    }

    #[test]
    fn topics_load_without_a_model() {
        let topics = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("worker.yaml");
            std::fs::write(&file, text).unwrap();
            Layers::read(Some(&file), std::iter::empty(), &Overrides::default())?.finish_topics()
        };
        let loaded = topics("{kafka: {brokers: 'a:1', group: g}, s3: {region: r}}").unwrap().kafka;
        assert_eq!((loaded.brokers.as_str(), loaded.group.as_str()), ("a:1", "g"));
        for (text, part) in [
            ("s3: {concurrency: 4}\n", "kafka.brokers is required"),
            ("kafka: {brokers: 'a:1'}\nbatch: {size: 0}\n", "batch.size"),
            ("kafka: {brokers: a}\n", "kafka.brokers can't be"),
            ("kafka: {brokers: 'a:1'}\nregistry: {url: r}\n", "registry.url"),
        ] {
            let error = topics(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.chain().contains(part), "{error}");
        }
    }

    #[test]
    fn later_layers_win() {
        let text = "kafka: {brokers: 'file:1', group: file}\nmodel: {path: file}\n";
        let environment = [("FUSIONCAP_KAFKA__BROKERS", "env:1"), ("FUSIONCAP_MODEL__PATH", "env")];
        let mut flags = Overrides::default();
        flags.set("kafka.brokers", "--brokers", "flag:1");
        let config = load(text, &environment, &flags).unwrap();
        assert_eq!(config.kafka.brokers, "flag:1");
        assert_eq!(config.model.path, "env");
        assert_eq!(config.kafka.group, "file");
        assert_eq!(config.kafka.input_topic, "images.in");
        assert_eq!(config.batch.size, 8);
    }

    #[test]
    fn the_environment_alone_suffices() {
        let variables = [
            ("FUSIONCAP_KAFKA__BROKERS", "a:1,b:2"),
            ("FUSIONCAP_KAFKA__PROPERTIES", "{socket.keepalive.enable: true, client.id: x}"),
            ("FUSIONCAP_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_SSL"),
            ("FUSIONCAP_KAFKA__PROPERTIES__CLIENT_ID", "y"),
            ("FUSIONCAP_KAFKA__PROPERTIES__A__B", "c"),
            ("FUSIONCAP_MODEL__PATH", "s3://bucket/tiny"),
            ("FUSIONCAP_MODEL__NUM_BEAMS", ""),
            ("FUSIONCAP_S3__ALLOWED_BUCKETS", "one, two"),
            ("FUSIONCAP_S3__FORCE_PATH_STYLE", "true"),
            ("FUSIONCAP_RUNTIME__PROVIDERS", "[cuda, cpu]"),
            ("FUSIONCAP_HTTP__LISTEN", "127.0.0.1:0"),
            ("FUSIONCAP_LOG", "debug"),
            ("FUSIONCAP_TEST_KAFKA", "x"),
            ("FUSIONCAP_SERVICE_HOST", "10.0.0.1"),
            ("FUSIONCAP_SERVICE_PORT_HTTP", "8080"),
            ("FUSIONCAP_PORT", "tcp://10.0.0.1:8080"),
            ("FUSIONCAP_METRICS_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ];
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let config = Config::load_layers(None, variables, &Overrides::default()).unwrap();
        let properties: Vec<(&str, &str)> = config
            .kafka
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            properties,
            [
                ("a_b", "c"),
                ("client.id", "y"),
                ("security.protocol", "SASL_SSL"),
                ("socket.keepalive.enable", "true"),
            ]
        );
        assert_eq!(config.s3.allowed_buckets, ["one", "two"]);
        assert!(config.s3.force_path_style);
        assert_eq!(config.model.num_beams, None);
        assert_eq!(config.runtime.providers.len(), 2);
    }

    #[test]
    fn file_errors_are_one_line_with_the_source() {
        for (text, expected) in [
            (
                "kafka:\n  broker: a:1\n",
                "there is no field kafka.broker (did you mean: kafka.brokers, set by: FILE:2)",
            ),
            (
                "batch:\n  size: many\n",
                "batch.size can't be 'many' (allowed: an integer from 1 to 1024, set by: FILE:2)",
            ),
            (
                "batch:\n  linger_ms: -1\n",
                "batch.linger_ms can't be -1 (allowed: an integer from 0 to 60000, \
                 set by: FILE:2)",
            ),
            ("kafka: 5\n", "kafka can't be 5 (allowed: a mapping, set by: FILE:1)"),
            ("- a\n", "the file can't be [\"a\"] (allowed: a mapping, set by: FILE)"),
            (
                "s3:\n  secret_access_key: 12345\n",
                "s3.secret_access_key can't be ****** (allowed: a string that is not empty, \
                 set by: FILE:2)",
            ),
            (
                "http: {listen: here}\n",
                "http.listen can't be 'here' (allowed: address:port, such as 0.0.0.0:8080, \
                 set by: FILE:1)",
            ),
            (
                "kafka:\n  properties:\n    ssl.key.pem: [x]\n",
                "kafka.properties.ssl.key.pem can't be ****** (allowed: a string, a number or \
                 a boolean, set by: FILE:3)",
            ),
        ] {
            let line = refusal(text, &[]);
            let (before, after) = expected.split_once("FILE").unwrap();
            assert!(line.starts_with(before) && line.ends_with(after), "{line}\n{expected}");
            assert!(line.contains("worker.yaml"), "{line}");
        }
        assert!(refusal("batch: {size: 1, size: 2}\n", &[]).contains("not valid YAML"));
        assert!(refusal("a: [\n", &[]).contains("not valid YAML"));
        assert!(refusal("colour: red\n", &[]).contains("there is no field colour (sections: "));
    }

    #[test]
    fn variable_errors_are_one_line_with_the_source() {
        for (name, value, expected) in [
            (
                "FUSIONCAP_KAFKA_BROKERS",
                "a:1",
                "the environment variable FUSIONCAP_KAFKA_BROKERS sets no field \
                 (did you mean: FUSIONCAP_KAFKA__BROKERS)",
            ),
            (
                "FUSIONCAP_NONSENSE",
                "1",
                "the environment variable FUSIONCAP_NONSENSE sets no field (allowed: names such \
                 as FUSIONCAP_KAFKA__BROKERS for kafka.brokers)",
            ),
            (
                "FUSIONCAP_BATCH__SIZE",
                "0",
                "batch.size can't be 0 (allowed: an integer from 1 to 1024, \
                 set by: FUSIONCAP_BATCH__SIZE)",
            ),
            (
                "FUSIONCAP_RUNTIME__PROVIDERS",
                "gpu",
                "runtime.providers can't be [\"gpu\"] (allowed: a list of cpu, cuda, tensorrt, \
                 set by: FUSIONCAP_RUNTIME__PROVIDERS)",
            ),
        ] {
            assert_eq!(refusal(MINIMAL, &[(name, value)]), expected);
        }
    }

    #[test]
    fn required_fields_are_named() {
        assert_eq!(
            refusal("", &[]),
            "kafka.brokers is required but not set (allowed: host:port[,host:port...], \
             set it by: the file, FUSIONCAP_KAFKA__BROKERS or a flag)"
        );
        assert!(refusal("kafka: {brokers: 'a:1'}", &[]).starts_with("model.path is required"));
    }

    #[test]
    fn a_rule_between_fields_names_the_source() {
        let line = refusal(MINIMAL, &[("FUSIONCAP_S3__BACKOFF_MAX_MS", "50")]);
        assert!(line.ends_with("set by: FUSIONCAP_S3__BACKOFF_MAX_MS)"), "{line}");
    }
}
