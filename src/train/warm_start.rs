//! Fine-tuning: a model that begins with the weights and the vocabulary of an existing bundle.
//!
//! The decoder and the prefix network must be there and of the same shape, and so must be what no
//! shape shows: the encoder, the heads, the switches that say what the prefix is made from. The
//! local module is taken where the bundle has one. The noise network is no part of a bundle and
//! begins anew, as do the memory and the nouns, which come from the new corpus.

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

/// What an existing bundle gives a new training.
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
        // A bundle may come without a card.
        let card = fs::read_to_string(bundle.path(CARD)).unwrap_or_default();
        Ok(Self {
            digest: bundle.digest().to_owned(),
            tokenizer: bundle.tokenizer()?,
            weights,
            num_attention_heads: bundle.config.num_attention_heads,
            card: Card::read(&card),
        })
    }

    /// `model` with the bundle's weights, for `run`.
    ///
    /// # Errors
    /// `ErrorKind::Config` naming the first weight that the bundle lacks or has in another shape,
    /// or what else the bundle was made for.
    pub fn apply(&self, model: FusionCap, run: &Run) -> Result<FusionCap> {
        self.check(run)?;
        let mut loader = WeightLoader { weights: &self.weights, path: Vec::new(), error: None };
        let filled = model.map(&mut loader);
        match loader.error {
            Some(error) => Err(error),
            None => Ok(filled),
        }
    }

    /// Compares what shapes don't show: the heads, and what the card records.
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
            Error::new(ErrorKind::Internal, "can't write the settings").because(error)
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

fn switch<'a>(settings: &'a toml::Table, table: &str, field: &str) -> Option<&'a toml::Value> {
    settings.get(table)?.get(field)
}

fn mismatch(
    what: &'static str,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> Error {
    Error::new(ErrorKind::Config, "--from: the bundle's model is incompatible")
        .with("differs", what)
        .with("expected", expected)
        .with("found", found)
}

/// What a model card records; nothing where it is written in another way.
#[derive(Debug, Default, PartialEq)]
struct Card {
    /// Name and version.
    encoder: Option<String>,
    settings: toml::Table,
}

impl Card {
    /// Reads a card as [`super::export`] writes it.
    fn read(text: &str) -> Self {
        let encoder = text_between(text, "## Encoder\n`", ", frozen:");
        let settings = text_between(text, "```toml\n", "```").and_then(|toml| toml.parse().ok());
        Self {
            encoder: encoder.map(|name| name.replacen('`', "", 1)),
            settings: settings.unwrap_or_default(),
        }
    }
}

/// What stands between `begin` and the next `end`.
fn section<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(found, _)| found)
}

/// Fills a model's parameters one by one.
struct WeightLoader<'a> {
    weights: &'a HashMap<String, Initializer>,
    path: Vec<String>,
    error: Option<Error>,
}

impl WeightLoader<'_> {
    /// The name in the bundle's graphs of the parameter that is being filled.
    fn name(&self) -> String {
        let known = |part: &&String| !["decoder", "blocks", "prefix"].contains(&part.as_str());
        let parts: Vec<&str> = self
            .path
            .iter()
            .filter(known)
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
            .with("weight", name)
            .with("expected", format!("{expected:?}"))
            .with("found", found);
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
            // Leading ones of a shape are how a graph stores a row.
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
    fn a_card_tells_the_encoder_and_the_switches() {
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
