//! Hyper-parameters: the commented defaults in `settings.toml`, overridden by a user's file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::alignment::AlignmentSettings;
use crate::bundle::GenerationConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::model::local::{LocalSettings, LocalSource};
use crate::model::noise::{NoiseKind, NoiseSettings};
use crate::model::projection::ProjectionSettings;
use crate::model::{ModelSpec, Shape};

/// Candidates per decoder step: twice the maximum beam width.
pub const CANDIDATES: usize = 16;

/// The defaults with their comments.
pub const DEFAULTS: &str = include_str!("settings.toml");

/// See `settings.toml` for the meaning of each field.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub seed: u64,
    pub vocab_size: usize,
    pub batch_size: usize,
    pub epochs: usize,
    pub learning_rate: f64,
    pub warmup_steps: usize,
    pub weight_decay: f32,
    pub gradient_norm: f32,
    pub label_smoothing: f32,
    pub held_out: usize,
    pub min_words: usize,
    pub max_words: usize,
    pub patience: usize,
    pub checkpoint_steps: usize,
    pub noise: NoiseSettings,
    pub projection: ProjectionSettings,
    pub alignment: AlignmentSettings,
    pub local: LocalSettings,
    pub shape: Shape,
    pub generation: GenerationConfig,
}

impl Settings {
    /// The defaults, overridden by the TOML file at `path` if given.
    ///
    /// # Errors
    /// `ErrorKind::Config` with the field, its value and the allowed values.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let mut table: toml::Table =
            toml::from_str(DEFAULTS).map_err(|error| invalid_settings(&error))?;
        if let Some(path) = path {
            let text = fs::read_to_string(path).map_err(|error| {
                Error::new(ErrorKind::Config, "can't read the settings")
                    .with_context("path", path.display())
                    .with_source(error)
            })?;
            merge(&mut table, toml::from_str(&text).map_err(|error| invalid_settings(&error))?);
        }
        let settings: Self = table.try_into().map_err(|error| invalid_settings(&error))?;
        settings.validate()?;
        Ok(settings)
    }

    /// Whether training uses the corpus's nouns.
    pub fn reads_nouns(&self) -> bool {
        let local = self.local.enabled && self.local.source == LocalSource::Nouns;
        local || self.noise.kind == NoiseKind::Mixture
    }

    /// The specification of the model.
    pub fn model_spec(&self, embedding_dim: usize, vocab_size: usize) -> ModelSpec<'_> {
        ModelSpec {
            shape: &self.shape,
            noise: &self.noise,
            projection: &self.projection,
            local: &self.local,
            embedding_dim,
            vocab_size,
        }
    }

    fn validate(&self) -> Result<()> {
        let shape = &self.shape;
        let minima = [
            ("vocab_size", self.vocab_size, 260),
            ("projection.memory_size", self.projection.memory_size, 1),
            ("local.items", self.local.items, 1),
            ("local.nouns", self.local.nouns, 1),
            ("local.noun_count", self.local.noun_count, 1),
            ("batch_size", self.batch_size, 1),
            ("epochs", self.epochs, 1),
            ("checkpoint_steps", self.checkpoint_steps, 1),
            ("held_out", self.held_out, 1),
            ("shape.hidden_size", shape.hidden_size, 1),
            ("shape.num_hidden_layers", shape.num_hidden_layers, 1),
            ("shape.num_attention_heads", shape.num_attention_heads, 1),
            ("shape.prefix_length", shape.prefix_length, 1),
            ("shape.max_length", shape.max_length, 4),
            ("shape.intermediate_size", shape.intermediate_size, 1),
            ("generation.num_beams", self.generation.num_beams, 1),
            ("generation.max_new_tokens", self.generation.max_new_tokens, 1),
        ];
        for (field, value, minimum) in minima {
            if value < minimum {
                return Err(out_of_range(field, value, format!("at least {minimum}")));
            }
        }
        // Token ids are stored in 16 bits.
        let maxima = [
            ("vocab_size", self.vocab_size, usize::from(u16::MAX)),
            ("generation.num_beams", self.generation.num_beams, CANDIDATES / 2),
            // The begin token also takes a position.
            ("generation.max_new_tokens", self.generation.max_new_tokens, shape.max_length - 1),
        ];
        for (field, value, limit) in maxima {
            if value > limit {
                return Err(out_of_range(field, value, format!("at most {limit}")));
            }
        }
        if !shape.hidden_size.is_multiple_of(shape.num_attention_heads) {
            let allowed = format!("a divisor of shape.hidden_size ({})", shape.hidden_size);
            return Err(out_of_range(
                "shape.num_attention_heads",
                shape.num_attention_heads,
                allowed,
            ));
        }
        self.validate_numbers()
    }

    fn validate_numbers(&self) -> Result<()> {
        let (noise, projection, local) = (&self.noise, &self.projection, &self.local);
        let positive = [
            ("learning_rate", self.learning_rate),
            ("noise.mixture_temperature", noise.mixture_temperature.into()),
            ("projection.temperature", projection.temperature.into()),
            ("projection.image_temperature", projection.image_temperature.into()),
            ("local.temperature", local.temperature.into()),
        ];
        for (field, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return Err(out_of_range(field, value, "more than 0"));
            }
        }
        let not_negative = [
            ("noise.sigma", noise.sigma),
            ("noise.kl_weight", noise.kl_weight),
            ("alignment.text_mean", self.alignment.text_mean),
            ("local.sigma", local.sigma),
        ];
        for (field, value) in not_negative {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(out_of_range(field, value, "0 or more"));
            }
        }
        // The learned scale is relative to the prior's.
        if noise.kind == NoiseKind::Learned && noise.sigma == 0.0 {
            let allowed = "more than 0 if noise.kind is \"learned\"";
            return Err(out_of_range("noise.sigma", noise.sigma, allowed));
        }
        let shares = [
            ("noise.floor", noise.floor),
            ("noise.mixture", noise.mixture),
            ("local.dropout", local.dropout),
            ("local.swap", local.swap),
            ("local.empty", local.empty),
        ];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(out_of_range(field, value, "0 to 1"));
            }
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(out_of_range("label_smoothing", self.label_smoothing, "0 to below 1"));
        }
        Ok(())
    }
}

/// Merges `over` into `table` recursively.
fn merge(table: &mut toml::Table, over: toml::Table) {
    for (name, value) in over {
        match (table.get_mut(&name), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(values)) => merge(inner, values),
            (_, value) => {
                table.insert(name, value);
            }
        }
    }
}

fn invalid_settings(error: &toml::de::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the settings are invalid: {}", error.message()))
}

fn out_of_range(
    field: &'static str,
    value: impl std::fmt::Display,
    allowed: impl std::fmt::Display,
) -> Error {
    Error::new(ErrorKind::Config, format!("{field} is out of range"))
        .with_context("value", value)
        .with_context("allowed", allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Settings::load(Some(file.path()))
    }

    #[test]
    fn a_file_overrides_the_defaults() {
        let settings = load("epochs = 1\n[shape]\nhidden_size = 64\n").unwrap();
        assert_eq!(settings.epochs, 1);
        assert_eq!(settings.shape.hidden_size, 64);
        assert_eq!(settings.shape.max_length, Settings::load(None).unwrap().shape.max_length);
    }

    #[test]
    fn errors_name_the_field() {
        let unknown = load("epoch = 1").unwrap_err().to_string();
        assert!(unknown.contains("epoch"), "{unknown}");
        let heads = load("[shape]\nnum_attention_heads = 7").unwrap_err();
        assert_eq!(heads.exit_code(), 2);
        assert!(heads.to_string().contains("shape.num_attention_heads"), "{heads}");
        let long = load("[generation]\nmax_new_tokens = 32").unwrap_err().to_string();
        assert!(
            long.contains("generation.max_new_tokens") && long.contains("at most 31"),
            "{long}"
        );
    }

    #[test]
    fn settings_that_can_not_train_are_refused() {
        let epochs = load("epochs = 0").unwrap_err();
        assert_eq!(epochs.exit_code(), 2);
        let reason = "epochs is out of range (value: 0, allowed: at least 1)";
        assert_eq!(epochs.to_string(), reason);

        let zero = load("[noise]\nkind = \"learned\"\nsigma = 0.0").unwrap_err();
        assert_eq!(zero.exit_code(), 2);
        let reason = "noise.sigma is out of range (value: 0, allowed: more than 0 if noise.kind";
        assert!(zero.to_string().starts_with(reason), "{zero}");
        load("[noise]\nkind = \"fixed\"\nsigma = 0.0").unwrap();
    }
}
