//! Fine-tuning: a model that begins with the weights and the vocabulary of an existing bundle.
//!
//! The decoder and the prefix network must be there and of the same shape. The local module is
//! taken where the bundle has one. The noise network is no part of a bundle and begins anew, as
//! do the memory and the nouns, which come from the new corpus.

use std::collections::HashMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use tokenizers::Tokenizer;

use crate::bundle::{Bundle, DECODER, PREFIX};
use crate::error::{Error, ErrorKind, Result};
use crate::model::FusionCap;
use crate::onnx::initializers::{self, Initializer};

/// What an existing bundle gives a new training.
pub struct WarmStart {
    /// The bundle's digest.
    pub digest: String,
    pub tokenizer: Tokenizer,
    weights: HashMap<String, Initializer>,
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
        Ok(Self { digest: bundle.digest().to_owned(), tokenizer: bundle.tokenizer()?, weights })
    }

    /// `model` with the bundle's weights.
    ///
    /// # Errors
    /// `ErrorKind::Config` naming the first weight that the bundle lacks or has in another shape.
    pub fn apply(&self, model: FusionCap) -> Result<FusionCap> {
        let mut filling = Filling { weights: &self.weights, place: Vec::new(), wrong: None };
        let filled = model.map(&mut filling);
        match filling.wrong {
            Some(error) => Err(error),
            None => Ok(filled),
        }
    }
}

/// Fills a model's parameters one by one.
struct Filling<'a> {
    weights: &'a HashMap<String, Initializer>,
    place: Vec<String>,
    wrong: Option<Error>,
}

impl Filling<'_> {
    /// The name in the bundle's graphs of the parameter that is being filled.
    fn name(&self) -> String {
        let known = |part: &&String| !["decoder", "blocks", "prefix"].contains(&part.as_str());
        let parts: Vec<&str> = self
            .place
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
        let error = Error::new(ErrorKind::Config, "--from: the bundle's model is another one")
            .with("weight", name)
            .with("expected", format!("{expected:?}"))
            .with("found", found);
        self.wrong.get_or_insert(error);
    }
}

impl ModuleMapper for Filling<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.place.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.place.pop();
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
