//! Other storage of the same model gives the same encoder: shards, 16 bits, external data, older and
//! newer configuration files.

use std::fs;

use fusioncap::bundle::TEXT;
use fusioncap::bundle::VISION;
use fusioncap::encoder::clip::tower::Storage;
use fusioncap::onnx::external::{INLINE_LIMIT, data_path};
use fusioncap::onnx::graph::Precision;
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, json};

use super::source::{Encoder, Source, Tensors, difference, floats, read_tensors, write_tensors};

fn same_graphs(left: &Encoder, right: &Encoder) -> bool {
    [VISION, TEXT]
        .iter()
        .all(|name| fs::read(left.path(name)).unwrap() == fs::read(right.path(name)).unwrap())
}

#[test]
fn shards_are_one_model() {
    let source = Source::new();
    let whole = source.import();
    let tensors = read_tensors(&source.path("model.safetensors"));
    source.remove("model.safetensors");
    let mut shards: [Tensors; 3] = Default::default();
    let mut weight_map = Map::new();
    for (place, (name, tensor)) in tensors.into_iter().enumerate() {
        let shard = place % shards.len();
        weight_map.insert(name.clone(), json!(format!("model-{}-of-3.safetensors", shard + 1)));
        shards[shard].insert(name, tensor);
    }
    for (place, shard) in shards.iter().enumerate() {
        write_tensors(&source.path(&format!("model-{}-of-3.safetensors", place + 1)), shard);
    }
    let index = json!({"metadata": {"total_size": 744_160}, "weight_map": weight_map});
    source.write("model.safetensors.index.json", &index.to_string());
    let sharded = source.import();
    assert!(same_graphs(&whole, &sharded));
    assert_eq!(whole.config().version, sharded.config().version);
}

/// Rounds every weight to 16 bits, and stores it in `dtype` if `is_stored`.
fn round(tensors: &mut Tensors, dtype: Dtype, is_stored: bool) {
    for (kind, _, bytes) in tensors.values_mut() {
        let values = floats(bytes);
        *bytes = match (dtype, is_stored) {
            (Dtype::BF16, true) => {
                values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
            }
            (Dtype::BF16, false) => values
                .iter()
                .flat_map(|value| bf16::from_f32(*value).to_f32().to_le_bytes())
                .collect(),
            (_, true) => {
                values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
            }
            (_, false) => values
                .iter()
                .flat_map(|value| f16::from_f32(*value).to_f32().to_le_bytes())
                .collect(),
        };
        if is_stored {
            *kind = dtype;
        }
    }
}

#[test]
fn weights_of_16_bits_are_computed_with_in_32() {
    let full = fs::metadata(Source::new().import().path(VISION)).unwrap().len();
    for dtype in [Dtype::F16, Dtype::BF16] {
        let (stored, widened) = (Source::new(), Source::new());
        stored.edit_weights(|tensors| round(tensors, dtype, true));
        widened.edit_weights(|tensors| round(tensors, dtype, false));
        let encoder = stored.import();
        let found = difference(&encoder.embed(), &widened.import().embed());
        assert!(found < 1e-6, "{dtype:?}: {found}");
        let size = fs::metadata(encoder.path(VISION)).unwrap().len();
        assert!(size < full * 6 / 10, "{dtype:?}: {size} of {full} bytes");
        // Imported in 32 bits, it equals the model stored in 32 bits.
        let asked = stored.import_as(Storage::As(Precision::Single), INLINE_LIMIT).unwrap();
        assert!(same_graphs(&asked, &widened.import()), "{dtype:?}");
    }
}

#[test]
fn half_precision_is_an_option() {
    let (exact, rounded) = (Source::new(), Source::new());
    rounded.edit_weights(|tensors| round(tensors, Dtype::F16, true));
    let asked = exact.import_as(Storage::As(Precision::Half), INLINE_LIMIT).unwrap();
    assert!(same_graphs(&asked, &rounded.import()));
    let lost = difference(&asked.embed(), &exact.import().embed());
    assert!(lost > 0.0 && lost < 1e-2, "{lost}");

    exact.edit_weights(|tensors| {
        let (_, _, bytes) = tensors.get_mut("visual_projection.weight").unwrap();
        bytes[..4].copy_from_slice(&1e6_f32.to_le_bytes());
    });
    let Err(error) = exact.import_as(Storage::As(Precision::Half), INLINE_LIMIT) else {
        panic!("1e6 exceeds fp16")
    };
    assert_eq!(error.exit_code(), 2);
    assert!(
        error.to_string().contains("tensor: visual_projection.weight, value: 1000000"),
        "{error}"
    );
    assert!(error.to_string().contains("--dtype fp32"), "{error}");
}

#[test]
fn a_large_tower_has_external_data() {
    let source = Source::new();
    let whole = source.import();
    let split = source.import_as(Storage::Source, 0).unwrap();
    for name in [VISION, TEXT] {
        let size = |path| fs::metadata(path).unwrap().len();
        assert!(size(split.path(name)) * 5 < size(whole.path(name)), "{name}");
        assert!(size(data_path(&split.path(name))) > size(split.path(name)), "{name}");
        assert!(!data_path(&whole.path(name)).exists(), "{name}");
    }
    assert_eq!(difference(&split.embed(), &whole.embed()), 0.0);

    // Other weights change the graph too, and so its digest, which caches use.
    source.edit_weights(|tensors| {
        tensors.get_mut("text_projection.weight").unwrap().2[..4]
            .copy_from_slice(&0.5_f32.to_le_bytes());
    });
    let other = source.import_as(Storage::Source, 0).unwrap();
    assert_ne!(fs::read(other.path(TEXT)).unwrap(), fs::read(split.path(TEXT)).unwrap());
    assert_ne!(other.config().version, split.config().version);

    // Replaced by an encoder without external data.
    source.import_to(other.dir(), Storage::Source, INLINE_LIMIT).unwrap();
    assert!(!data_path(&other.path(VISION)).exists());
    assert!(same_graphs(&other, &source.import()));
}

#[test]
fn a_failed_import_leaves_the_old_encoder() {
    let source = Source::new();
    let encoder = source.import();
    let before = encoder.embed();
    source.edit_weights(|tensors| {
        tensors.remove("text_projection.weight");
    });
    assert!(source.import_to(encoder.dir(), Storage::Source, INLINE_LIMIT).is_err());
    assert_eq!(encoder.embed(), before);
    let mut entries: Vec<_> = fs::read_dir(encoder.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    entries.sort();
    assert_eq!(entries, ["config.json", "onnx", "preprocessor_config.json", "tokenizer.json"]);
}

#[test]
fn preprocessing_is_found_in_the_newer_file() {
    let source = Source::new();
    source.remove("preprocessor_config.json");
    let inner = json!({
        "size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 48}, "resample": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
    });
    source.write("processor_config.json", &json!({"image_processor": inner}).to_string());
    let text = fs::read_to_string(source.import().path("preprocessor_config.json")).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["size"], json!({"shortest_edge": 60}));
    assert_eq!((&written["resample"], &written["image_std"][2]), (&json!(2), &json!(0.25)));
    // The default is CLIP's preprocessing at the tower's size.
    source.remove("processor_config.json");
    let default = fs::read_to_string(source.import().path("preprocessor_config.json")).unwrap();
    let taken: serde_json::Value = serde_json::from_str(&default).unwrap();
    assert_eq!(taken["size"], json!({"shortest_edge": 48}));
}

#[test]
fn the_older_tokenizer_files_are_converted() {
    let encoder = Source::new().import();
    let tokenizer = tokenizers::Tokenizer::from_file(encoder.path("tokenizer.json")).unwrap();
    let encoding = tokenizer.encode("The  hat of Th\u{00e9}", true).unwrap();
    // As `CLIPTokenizerFast` splits it: "the", "h a t", "of", "th" and the bytes of "é", which
    // this vocabulary lacks.
    let known = &encoding.get_tokens()[..6];
    assert_eq!(known, ["<|startoftext|>", "the</w>", "h", "a", "t</w>", "of</w>"]);
    assert_eq!(encoding.get_tokens()[6], "th");
    assert_eq!(encoding.get_ids().last(), Some(&511));
    // The converted file is copied unchanged.
    let again = Source::new();
    again.write("tokenizer.json", &fs::read_to_string(encoder.path("tokenizer.json")).unwrap());
    again.remove("vocab.json");
    again.remove("merges.txt");
    let copied = again.import();
    assert_eq!(
        fs::read(copied.path("tokenizer.json")).unwrap(),
        fs::read(encoder.path("tokenizer.json")).unwrap()
    );
}
