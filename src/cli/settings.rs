//! The flags that set configuration fields, shared by every subcommand that takes `--config`.

use std::path::PathBuf;

use crate::config::{Config, Http, Overrides, Topics};
use crate::error::{Error, ErrorKind, Result};

/// The sources of the configuration: a file, overridden by the environment, overridden by these flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Settings {
    /// Configuration file (YAML); every field can also be set in the environment
    #[arg(long, value_name = "FILE", env = "FUSIONCAP_CONFIG")]
    pub config: Option<PathBuf>,
    /// Kafka bootstrap servers (kafka.brokers)
    #[arg(long, value_name = "HOST:PORT,...")]
    pub brokers: Option<String>,
    /// Consumer group (kafka.group)
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Model bundle: a directory or s3://bucket/prefix (model.path)
    #[arg(long, value_name = "PATH")]
    pub model: Option<String>,
    /// Images per batch (batch.size)
    #[arg(long, value_name = "N")]
    pub batch_size: Option<String>,
    /// Address of /livez, /readyz and /metrics (http.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Any other field, such as `--set s3.concurrency=64`; may be repeated
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub fields: Vec<String>,
}

impl Settings {
    /// Reads, layers and checks the configuration.
    ///
    /// # Errors
    /// `ErrorKind::Config`, naming the field, its value, what is allowed and where it was set.
    pub fn load(&self) -> Result<Config> {
        Config::load(self.config.as_deref(), &self.overrides()?)
    }

    fn overrides(&self) -> Result<Overrides> {
        let flags = [
            ("kafka.brokers", "--brokers", &self.brokers),
            ("kafka.group", "--group", &self.group),
            ("model.path", "--model", &self.model),
            ("batch.size", "--batch-size", &self.batch_size),
            ("http.listen", "--listen", &self.listen),
        ];
        overrides(&self.fields, &flags)
    }
}

/// The same for commands that need only Kafka and the schema registry. The file may have other
/// sections; none is required.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KafkaSettings {
    /// Configuration file (YAML), the worker's own; every field can also be set in the environment
    #[arg(long, value_name = "FILE", env = "FUSIONCAP_CONFIG")]
    pub config: Option<PathBuf>,
    /// Kafka bootstrap servers (kafka.brokers)
    #[arg(long, value_name = "HOST:PORT,...")]
    pub brokers: Option<String>,
    /// Consumer group (kafka.group)
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Any other field, such as `--set kafka.input_topic=photos.in`; may be repeated
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub fields: Vec<String>,
}

impl KafkaSettings {
    /// Reads, layers and checks the sections `kafka` and `registry`.
    ///
    /// # Errors
    /// `ErrorKind::Config`, naming the field, its value, what is allowed and where it was set.
    pub fn load(&self) -> Result<Topics> {
        let flags = [
            ("kafka.brokers", "--brokers", &self.brokers),
            ("kafka.group", "--group", &self.group),
        ];
        Config::load_topics(self.config.as_deref(), &overrides(&self.fields, &flags)?)
    }
}

/// The same for commands that ask a worker: nothing is required.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct HttpSettings {
    /// Configuration file (YAML), the worker's own; every field can also be set in the environment
    #[arg(long, value_name = "FILE", env = "FUSIONCAP_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address of /livez, /readyz and /metrics (http.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Any other field, as the worker was given it; may be repeated
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub fields: Vec<String>,
}

impl HttpSettings {
    /// Reads, layers and checks the section `http`.
    ///
    /// # Errors
    /// `ErrorKind::Config`, naming the field, its value, what is allowed and where it was set.
    pub fn load(&self) -> Result<Http> {
        let flags = [("http.listen", "--listen", &self.listen)];
        Config::load_http(self.config.as_deref(), &overrides(&self.fields, &flags)?)
    }
}

fn overrides(
    fields: &[String],
    flags: &[(&'static str, &'static str, &Option<String>)],
) -> Result<Overrides> {
    let mut overrides = Overrides::default();
    for field in fields {
        let Some((path, value)) = field.split_once('=') else {
            return Err(Error::new(ErrorKind::Config, format!("--set can't be '{field}'"))
                .with_context("allowed", "FIELD=VALUE, such as s3.concurrency=64"));
        };
        overrides.set(path, "--set", value);
    }
    for (path, flag, value) in flags {
        if let Some(text) = value {
            overrides.set(*path, flag, text);
        }
    }
    Ok(overrides)
}
