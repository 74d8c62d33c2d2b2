//! Fine-tuning: a model initialised with the weights and the vocabulary of an existing bundle.
//!
//! The decoder and the prefix network must have the same shapes. The encoder, the number of heads
//! and the inputs of the prefix, which shapes do not show, must also match. The local module is
//! loaded if the bundle has one. The noise network, which bundles do not contain, starts from
//! random weights; the memory and the nouns come from the new corpus.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use tokenizers::Tokenizer;

use super::checkpoint::Run;
use crate::bundle::{Bundle, CARD, DECODER, PREFIX};
use crate::error::{Error, ErrorKind, Result};
use crate::model::FusionCap;
use crate::onnx::initializers::{self, Initializer};

/// The parts of an existing bundle for fine-tuning.
pub struct WarmStart {
    /// The bundle's digest.
    pub digest: String,
    pub tokenizer: Tokenizer,
    weights: HashMap<String, Initializer>,
    num_attention_heads: usize,
    card: Card,
}

impl WarmStart {
    /// Reads the bundle in `dir`.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` if it is missing or damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let bundle = Bundle::open(dir)?;
        let mut weights = initializers::read(&bundle.path(DECODER))?;
        weights.extend(initializers::read(&bundle.path(PREFIX))?);
        // The card is optional.
        let card = fs::read_to_string(bundle.path(CARD)).unwrap_or_default();
        Ok(Self {
            digest: bundle.digest().to_owned(),
            tokenizer: bundle.tokenizer()?,
            weights,
            num_attention_heads: bundle.config.num_attention_heads,
            card: Card::read(&card),
        })
    }

    /// Loads the bundle's weights into `model` for `run`.
    ///
    /// # Errors
    /// `ErrorKind::Config` with the first missing or misshapen weight, or the first setting that
    /// differs.
    pub fn apply(&self, model: FusionCap, run: &Run) -> Result<FusionCap> {
        self.check(run)?;
        let mut loader = WeightLoader { weights: &self.weights, path: Vec::new(), error: None };
        let filled = model.map(&mut loader);
        match loader.error {
            Some(error) => Err(error),
            None => Ok(filled),
        }
    }

    /// Compares the heads, and the settings in the model card.
    fn check(&self, run: &Run) -> Result<()> {
        let heads = run.settings.shape.num_attention_heads;
        if heads != self.num_attention_heads {
            return Err(mismatch("shape.num_attention_heads", heads, self.num_attention_heads));
        }
        if let Some(encoder) = &self.card.encoder
            && *encoder != run.encoder
        {
            return Err(mismatch("encoder", &run.encoder, encoder));
        }
        let now = toml::Table::try_from(&run.settings).map_err(|error| {
            Error::new(ErrorKind::Internal, "can't write the settings").with_source(error)
        })?;
        let local = |table| setting(table, "local", "enabled").and_then(toml::Value::as_bool);
        let both = local(&now) == Some(true) && local(&self.card.settings) == Some(true);
        let compared = [
            ("projection.enabled", "projection", "enabled", true),
            ("projection.keep_embedding", "projection", "keep_embedding", true),
            ("local.source", "local", "source", both),
        ];
        for (name, table, field, matters) in compared {
            let expected = setting(&now, table, field);
            let found = setting(&self.card.settings, table, field);
            if let (true, Some(expected), Some(found)) = (matters, expected, found)
                && expected != found
            {
                return Err(mismatch(name, expected, found));
            }
        }
        Ok(())
    }
}

fn setting<'a>(settings: &'a toml::Table, table: &str, field: &str) -> Option<&'a toml::Value> {
    settings.get(table)?.get(field)
}

fn mismatch(
    field: &'static str,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> Error {
    Error::new(ErrorKind::Config, "--from: the bundle's model is incompatible")
        .with_context("differs", field)
        .with_context("expected", expected)
        .with_context("found", found)
}

/// The data in a model card; empty if the card has another format.
#[derive(Debug, Default, PartialEq)]
struct Card {
    /// Name and version.
    encoder: Option<String>,
    settings: toml::Table,
}

impl Card {
    /// Parses a card in the format of [`super::export`].
    fn read(text: &str) -> Self {
        let encoder = text_between(text, "## Encoder\n`", ", frozen:");
        let settings = text_between(text, "```toml\n", "```").and_then(|toml| toml.parse().ok());
        Self {
            encoder: encoder.map(|name| name.replacen('`', "", 1)),
            settings: settings.unwrap_or_default(),
        }
    }
}

/// The text between `begin` and the next `end`.
fn text_between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(found, _)| found)
}

/// Loads a model's parameters one by one.
struct WeightLoader<'a> {
    weights: &'a HashMap<String, Initializer>,
    path: Vec<String>,
    error: Option<Error>,
}

impl WeightLoader<'_> {
    /// The name of the current parameter in the bundle's graphs.
    fn name(&self) -> String {
        let is_named = |part: &&String| !["decoder", "blocks", "prefix"].contains(&part.as_str());
        let parts: Vec<&str> = self
            .path
            .iter()
            .filter(is_named)
            .map(|part| match part.as_str() {
                "gamma" => "scale",
                "beta" => "bias",
                other => other,
            })
            .collect();
        match parts.as_slice() {
            ["tokens", "weight"] => "tokens".into(),
            parts => parts.join("."),
        }
    }

    fn refuse(&mut self, name: &str, expected: &[usize], found: &str) {
        let error = Error::new(ErrorKind::Config, "--from: the bundle's model is incompatible")
            .with_context("weight", name)
            .with_context("expected", format!("{expected:?}"))
            .with_context("found", found);
        self.error.get_or_insert(error);
    }
}

impl ModuleMapper for WeightLoader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.name();
        let expected: [usize; D] = parameter.val().dims();
        let count: usize = expected.iter().product();
        let optional = name.starts_with("local.") || name.starts_with("noise.");
        match self.weights.get(&name) {
            // The graph may store a row with leading dimensions of 1.
            Some(weight)
                if weight.values.len() == count
                    && weight.shape.ends_with(&expected[D.min(1)..]) =>
            {
                let values = weight.values.clone();
                parameter.map(|tensor| {
                    let device = tensor.device();
                    let filled = Tensor::from_data(TensorData::new(values, expected), &device);
                    if tensor.is_require_grad() { filled.require_grad() } else { filled }
                })
            }
            Some(weight) => {
                let found = format!("{:?}", weight.shape);
                self.refuse(&name, &expected, &found);
                parameter
            }
            None if optional => parameter,
            None => {
                self.refuse(&name, &expected, "none");
                parameter
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_the_encoder_and_the_settings() {
        let card = Card::read(
            "# fusioncap-x\n\n## Encoder\n`random` 7, frozen:\n- weights\n\n\
             ## Training\n```toml\nseed = 1\n\n[projection]\nenabled = false\n```\n",
        );
        assert_eq!(card.encoder.as_deref(), Some("random 7"));
        let expected = toml::Value::Boolean(false);
        assert_eq!(setting(&card.settings, "projection", "enabled"), Some(&expected));
        assert_eq!(setting(&card.settings, "local", "source"), None);
        assert_eq!(Card::read("# another's\n"), Card::default());
    }
}
