//! One section alone, for what runs no model: fields of the other sections are checked, and none of
//! them is required. May use `load` and `validate`.

use std::path::Path;

use super::load::Layers;
use super::{Config, Http, Kafka, Overrides, validate};
use crate::error::Result;

impl Config {
    /// The section `kafka`; the rules that join fields are the section's own.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_kafka(path: Option<&Path>, flags: &Overrides) -> Result<Kafka> {
        Layers::read(path, std::env::vars_os(), flags)?.finish_kafka()
    }

    /// The section `http`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_http(path: Option<&Path>, flags: &Overrides) -> Result<Http> {
        Layers::read(path, std::env::vars_os(), flags)?.section("http")
    }
}

impl Layers {
    pub(super) fn finish_kafka(self) -> Result<Kafka> {
        let kafka: Kafka = self.section("kafka")?;
        validate::check_kafka(&kafka).map_err(|problem| self.located(problem))?;
        Ok(kafka)
    }
}
