//! CLIP's image preprocessing: `preprocessor_config.json` with the defaults of `transformers`.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::VisionConfig;
use crate::bundle::{PREPROCESSOR_CONFIG, PreprocessorConfig};
use crate::error::{Error, Result};
use crate::image::Preprocessor;

/// The file and key in `transformers` 5.
const PROCESSOR_CONFIG: &str = "processor_config.json";
const IMAGE_PROCESSOR: &str = "image_processor";

/// Reads the preprocessing in `dir`; the default is CLIP's.
///
/// # Errors
/// `ErrorKind::Config` if it can't be read, is not supported, or its output does not fit the vision
/// tower.
pub fn read(dir: &Path, vision: &VisionConfig) -> Result<PreprocessorConfig> {
    let path = dir.join(PREPROCESSOR_CONFIG);
    let fields = match read_object(&path)? {
        Some(fields) => fields,
        None => match read_processor(&dir.join(PROCESSOR_CONFIG))? {
            Some(fields) => fields,
            None => {
                tracing::warn!(
                    path = %path.display(),
                    "no image preprocessing found, using CLIP's own"
                );
                Map::new()
            }
        },
    };
    let config = with_defaults(fields, vision.image_size).map_err(|error| {
        Error::config_at("can't read the preprocessing", &path).with_source(error)
    })?;
    let (height, width) = Preprocessor::new(config.clone())
        .map_err(|error| {
            Error::config_at("the preprocessing is not supported", &path).with_source(error)
        })?
        .input_size();
    if (height, width) != (vision.image_size, vision.image_size) {
        return Err(Error::config_at(
            "the preprocessing's output does not fit the vision tower",
            &path,
        )
        .with_context("output size", format!("{height} x {width}"))
        .with_context("vision_config.image_size", vision.image_size));
    }
    Ok(config)
}

fn read_processor(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(mut fields) = read_object(path)? else { return Ok(None) };
    match fields.remove(IMAGE_PROCESSOR) {
        Some(Value::Object(inner)) => Ok(Some(inner)),
        _ => Ok(None),
    }
}

/// The JSON object in the file at `path`, if the file exists.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let unusable = || -> Error { Error::config_at("can't read the preprocessing", path) };
    let bytes = fs::read(path).map_err(|error| unusable().with_source(error))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| unusable().with_source(error))
}

/// `fields` with the defaults of `CLIPImageProcessor`.
fn with_defaults(
    mut fields: Map<String, Value>,
    image_size: usize,
) -> Result<PreprocessorConfig, serde_json::Error> {
    fields.retain(|_, value| !value.is_null());
    let defaults = json!({
        "do_resize": true,
        "size": {"shortest_edge": image_size},
        "resample": 3,
        "do_center_crop": true,
        "crop_size": {"height": image_size, "width": image_size},
        "rescale_factor": 1.0 / 255.0,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_std": [0.268_629_54, 0.261_302_6, 0.275_777_1],
    });
    if fields.get("do_rescale") == Some(&Value::Bool(false)) {
        fields.insert("rescale_factor".into(), json!(1.0));
    }
    if fields.get("do_normalize") == Some(&Value::Bool(false)) {
        fields.insert("image_mean".into(), json!([0.0, 0.0, 0.0]));
        fields.insert("image_std".into(), json!([1.0, 1.0, 1.0]));
    }
    if let Value::Object(defaults) = defaults {
        for (name, value) in defaults {
            fields.entry(name).or_insert(value);
        }
    }
    serde_json::from_value(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Size;

    fn completed(value: Value) -> PreprocessorConfig {
        let Value::Object(fields) = value else { panic!("{value} is not an object") };
        with_defaults(fields, 224).unwrap()
    }

    #[test]
    fn missing_fields_have_the_defaults_of_clip() {
        let config = completed(json!({"do_resize": null}));
        assert!(config.do_resize && config.do_center_crop);
        assert_eq!(config.size, Size::ShortestEdge { shortest_edge: 224 });
        assert_eq!(config.crop_size, Some(Size::Exact { height: 224, width: 224 }));
        assert_eq!((config.resample, config.image_mean[0]), (3, 0.481_454_66));
    }

    #[test]
    fn older_and_newer_sizes_are_equivalent() {
        let older = completed(json!({"size": 336, "crop_size": 336, "do_center_crop": true}));
        let newer = completed(json!({
            "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336},
            "image_processor_type": "CLIPImageProcessorFast", "do_convert_rgb": true,
        }));
        let size = |config| Preprocessor::new(config).unwrap().input_size();
        assert_eq!((size(older), size(newer)), ((336, 336), (336, 336)));
    }

    #[test]
    fn disabled_steps_are_identities() {
        let config = completed(json!({
            "do_rescale": false, "do_normalize": false, "image_mean": [0.5, 0.5, 0.5],
        }));
        assert_eq!(
            (config.rescale_factor, config.image_mean[0], config.image_std[0]),
            (1.0, 0.0, 1.0)
        );
    }
}
