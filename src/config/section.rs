//! Single sections, for commands that run no model. Fields of the other sections are validated if
//! present, but none of them is required.

use std::path::Path;

use super::load::Layers;
use super::{Config, Http, Overrides, Runtime, Topics, validate};
use crate::error::Result;

impl Config {
    /// The sections `kafka` and `registry`, with the rules between their fields.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_topics(path: Option<&Path>, flags: &Overrides) -> Result<Topics> {
        Layers::read(path, std::env::vars_os(), flags)?.finish_topics()
    }

    /// The section `http`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_http(path: Option<&Path>, flags: &Overrides) -> Result<Http> {
        Layers::read(path, std::env::vars_os(), flags)?.section("http")
    }

    /// The section `runtime`, from the environment only.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_runtime() -> Result<Runtime> {
        Layers::read(None, std::env::vars_os(), &Overrides::default())?.section("runtime")
    }
}

impl Layers {
    pub(super) fn finish_topics(self) -> Result<Topics> {
        let topics = Topics { kafka: self.section("kafka")?, registry: self.section("registry")? };
        validate::check_topics(&topics).map_err(|problem| self.rule_error(problem))?;
        Ok(topics)
    }
}
