//! CLIP's `config.json`, with the defaults of `transformers`.

use std::fmt::Display;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::bundle::CONFIG;
use crate::error::{Error, Result};

/// Maximum size of a dimension, so that products fit in 64 bits.
const MAX_SIZE: usize = 1 << 16;
/// Maximum vocabulary, so that token ids are exact as 32-bit floats.
const MAX_TOKENS: usize = 1 << 24;

/// The configuration of both towers.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// Width of the joint embedding space.
    pub projection_dim: usize,
    pub vision: VisionConfig,
    pub text: TextConfig,
}

/// The pre-norm transformer of a tower (Radford et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub transformer: TransformerConfig,
    /// Side of the input in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

impl VisionConfig {
    /// Whole patches per image.
    pub fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    pub transformer: TransformerConfig,
    pub vocab_size: usize,
    /// Maximum text length in tokens.
    pub max_position_embeddings: usize,
    pub pooling: Pooling,
}

/// The token whose state is the text embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token with this id.
    FirstOf(i64),
    /// The first token with the largest id. Configurations older than `transformers` 4.30 have a wrong
    /// `eos_token_id` of 2; the end token is the last of the vocabulary.
    LargestId,
}

/// The activation function, by the names in `transformers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `x * Phi(x)` with erf.
    Gelu,
    /// GELU approximated with tanh.
    GeluTanh,
}

impl Activation {
    const NAMES: [(&'static str, Self); 4] = [
        ("quick_gelu", Self::QuickGelu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
    ];
}

impl ClipConfig {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// `ErrorKind::Config` with the file, or the field, its value and the allowed values.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let bytes = fs::read(&path).map_err(|error| {
            Error::config_at("can't read CLIP's configuration", &path).with_source(error)
        })?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            Error::config_at("can't parse CLIP's configuration", &path).with_source(error)
        })?;
        let Value::Object(fields) = value else {
            return Err(Error::config_at("CLIP's configuration is not a JSON object", &path));
        };
        Self::parse(fields, &path)
    }

    fn parse(mut fields: Map<String, Value>, path: &Path) -> Result<Self> {
        match fields.get("model_type").and_then(Value::as_str) {
            Some("clip") => {}
            other => {
                return Err(Error::config_at("model_type is not supported", path)
                    .with_context("value", other.unwrap_or("none"))
                    .with_context("allowed", "clip (the whole model with both towers)"));
            }
        }
        let vision = Section::take("vision_config", &mut fields, path)?;
        let text = Section::take("text_config", &mut fields, path)?;
        let whole = Section { name: "", fields, path };
        Ok(Self {
            projection_dim: whole.size("projection_dim", 512, 1..=MAX_SIZE)?,
            vision: parse_vision(&vision)?,
            text: parse_text(&text)?,
        })
    }
}

fn parse_vision(section: &Section<'_>) -> Result<VisionConfig> {
    section.size("num_channels", 3, 3..=3)?;
    let image_size = section.size("image_size", 224, 1..=8192)?;
    Ok(VisionConfig {
        transformer: parse_transformer(section, [768, 3072, 12])?,
        image_size,
        patch_size: section.size("patch_size", 32, 1..=image_size)?,
    })
}

fn parse_text(section: &Section<'_>) -> Result<TextConfig> {
    let vocab_size = section.size("vocab_size", 49408, 1..=MAX_TOKENS)?;
    let pooling = match section.size("eos_token_id", 49407, 0..=MAX_TOKENS)? {
        2 => Pooling::LargestId,
        id if id < vocab_size => Pooling::FirstOf(id as i64),
        id => {
            let allowed = format!("0 to {}", vocab_size - 1);
            return Err(section.wrong("eos_token_id", id, allowed));
        }
    };
    Ok(TextConfig {
        transformer: parse_transformer(section, [512, 2048, 8])?,
        vocab_size,
        max_position_embeddings: section.size("max_position_embeddings", 77, 2..=MAX_SIZE)?,
        pooling,
    })
}

/// `defaults` are for `hidden_size`, `intermediate_size` and `num_attention_heads`.
fn parse_transformer(section: &Section<'_>, defaults: [usize; 3]) -> Result<TransformerConfig> {
    let [hidden, intermediate, heads] = defaults;
    let hidden_size = section.size("hidden_size", hidden, 1..=MAX_SIZE)?;
    let num_attention_heads = section.size("num_attention_heads", heads, 1..=hidden_size)?;
    if !hidden_size.is_multiple_of(num_attention_heads) {
        let allowed = format!("a divisor of hidden_size, {hidden_size}");
        return Err(section.wrong("num_attention_heads", num_attention_heads, allowed));
    }
    Ok(TransformerConfig {
        hidden_size,
        intermediate_size: section.size("intermediate_size", intermediate, 1..=MAX_SIZE)?,
        num_hidden_layers: section.size("num_hidden_layers", 12, 1..=1024)?,
        num_attention_heads,
        hidden_act: section.activation()?,
        layer_norm_eps: section.epsilon()?,
    })
}

/// A level of the configuration; absent and null fields have default values.
struct Section<'a> {
    name: &'static str,
    fields: Map<String, Value>,
    path: &'a Path,
}

impl<'a> Section<'a> {
    /// Removes the tower `name` from `whole`. The older form `{name}_dict` replaces it entirely, as in
    /// `transformers`.
    fn take(name: &'static str, whole: &mut Map<String, Value>, path: &'a Path) -> Result<Self> {
        let mut section = Self { name: "", fields: Map::new(), path };
        for key in [name.to_owned(), format!("{name}_dict")] {
            match whole.remove(&key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(fields)) => section.fields = fields,
                Some(other) => return Err(section.wrong(&key, other, "a JSON object")),
            }
        }
        Ok(Self { name, ..section })
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &str, default: usize, allowed: RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let size = value.as_u64().and_then(|number| usize::try_from(number).ok());
        size.filter(|number| allowed.contains(number)).ok_or_else(|| {
            let (min, max) = allowed.into_inner();
            let range = if min == max { min.to_string() } else { format!("{min} to {max}") };
            self.wrong(field, value, range)
        })
    }

    fn epsilon(&self) -> Result<f32> {
        let Some(value) = self.get("layer_norm_eps") else { return Ok(1e-5) };
        let number = value.as_f64().filter(|number| (0.0..1.0).contains(number));
        let epsilon = number.ok_or_else(|| self.wrong("layer_norm_eps", value, "0 to below 1"))?;
        Ok(epsilon as f32)
    }

    fn activation(&self) -> Result<Activation> {
        let Some(value) = self.get("hidden_act") else { return Ok(Activation::QuickGelu) };
        let known = |(name, _): &&(&str, Activation)| value.as_str() == Some(*name);
        match Activation::NAMES.iter().find(known) {
            Some((_, activation)) => Ok(*activation),
            None => {
                let names: Vec<&str> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
                Err(self.wrong("hidden_act", value, names.join(", ")))
            }
        }
    }

    fn wrong(&self, field: &str, value: impl Display, allowed: impl Display) -> Error {
        let dot = if self.name.is_empty() { "" } else { "." };
        Error::config_at("a value of CLIP's configuration is not supported", self.path)
            .with_context("field", format!("{}{dot}{field}", self.name))
            .with_context("value", value)
            .with_context("allowed", allowed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<ClipConfig> {
        let Value::Object(fields) = value else { panic!("{value} is not an object") };
        ClipConfig::parse(fields, Path::new("config.json"))
    }

    #[test]
    fn the_defaults_are_clip_vit_base_patch32() {
        let config = parse(json!({"model_type": "clip", "text_config": null})).unwrap();
        let vision = &config.vision;
        assert_eq!((config.projection_dim, vision.image_size, vision.patch_size), (512, 224, 32));
        assert_eq!(vision.num_patches(), 49);
        let transformer = &vision.transformer;
        assert_eq!((transformer.hidden_size, transformer.num_attention_heads), (768, 12));
        assert_eq!(transformer.hidden_act, Activation::QuickGelu);
        let text = &config.text;
        assert_eq!((text.vocab_size, text.max_position_embeddings), (49408, 77));
        assert_eq!(text.pooling, Pooling::FirstOf(49407));
        assert_eq!((text.transformer.hidden_size, text.transformer.num_hidden_layers), (512, 12));
    }

    #[test]
    fn the_older_form_of_a_tower_takes_precedence() {
        let config = parse(json!({
            "model_type": "clip",
            "vision_config": {"hidden_size": 64, "patch_size": 16, "hidden_act": "gelu"},
            "vision_config_dict": {"hidden_size": 1024, "patch_size": 14, "num_attention_heads": 16},
            "text_config": {"eos_token_id": 2, "hidden_act": "gelu"},
        }));
        let config = config.unwrap();
        let vision = &config.vision.transformer;
        assert_eq!((vision.hidden_size, config.vision.patch_size), (1024, 14));
        assert_eq!(vision.hidden_act, Activation::QuickGelu);
        assert_eq!(config.text.pooling, Pooling::LargestId);
        assert_eq!(config.text.transformer.hidden_act, Activation::Gelu);
    }

    #[test]
    fn errors_name_the_field_and_the_allowed_values() {
        let cases = [
            (json!({"model_type": "siglip"}), "value: siglip, allowed: clip"),
            (json!({}), "value: none, allowed: clip"),
            (
                json!({"model_type": "clip", "vision_config": {"hidden_size": "wide"}}),
                "field: vision_config.hidden_size, value: \"wide\", allowed: 1 to 65536",
            ),
            (
                json!({"model_type": "clip", "vision_config": {"patch_size": 0}}),
                "field: vision_config.patch_size, value: 0, allowed: 1 to 224",
            ),
            (
                json!({"model_type": "clip", "vision_config": {"num_channels": 1}}),
                "field: vision_config.num_channels, value: 1, allowed: 3",
            ),
            (
                json!({"model_type": "clip", "text_config": {"num_attention_heads": 7}}),
                "field: text_config.num_attention_heads, value: 7, allowed: a divisor",
            ),
            (
                json!({"model_type": "clip", "text_config": {"vocab_size": 10}}),
                "field: text_config.eos_token_id, value: 49407, allowed: 0 to 9",
            ),
            (
                json!({"model_type": "clip", "text_config": {"hidden_act": "relu"}}),
                "value: \"relu\", allowed: quick_gelu, gelu, gelu_new, gelu_pytorch_tanh",
            ),
            (
                json!({"model_type": "clip", "text_config": {"layer_norm_eps": -1.0}}),
                "field: text_config.layer_norm_eps, value: -1.0, allowed: 0 to below 1",
            ),
            (
                json!({"model_type": "clip", "projection_dim": 0}),
                "field: projection_dim, value: 0, allowed: 1 to 65536",
            ),
            (
                json!({"model_type": "clip", "text_config": 3}),
                "field: text_config, value: 3, allowed: a JSON object",
            ),
        ];
        for (value, expected) in cases {
            let error = parse(value).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{error}\n{expected}");
        }
    }
}
