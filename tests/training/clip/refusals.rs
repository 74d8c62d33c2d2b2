//! Unusable sources are refused with one line that names the file.

use std::fs;

use serde_json::json;

use super::source::Source;

/// The error for `source`, with exit code 2.
fn refusal(source: &Source) -> String {
    let Err(error) = source.try_import() else { panic!("it was imported") };
    assert_eq!(error.exit_code(), 2, "{error}");
    error.chain()
}

#[track_caller]
fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!line.contains('\n'), "{line:?}");
}

#[test]
fn a_missing_directory() {
    let source = Source::new();
    let out = tempfile::tempdir().unwrap();
    let request = fusioncap::encoder::clip::Import {
        source: source.path("elsewhere"),
        out: out.path().into(),
        name: None,
        storage: fusioncap::encoder::clip::tower::Storage::Source,
        inline_limit: usize::MAX,
    };
    let error = fusioncap::encoder::clip::import(&request, &Default::default()).unwrap_err();
    assert_says(&error.chain(), &["the CLIP directory does not exist", "elsewhere"]);
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn an_output_directory_with_other_files() {
    let source = Source::new();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("thesis.tex"), "years of work").unwrap();
    let limit = usize::MAX;
    let storage = fusioncap::encoder::clip::tower::Storage::Source;
    let error = source.import_to(out.path(), storage, limit).unwrap_err();
    assert_says(&error.chain(), &["--out holds files that are not an encoder", "allowed: a new"]);
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn configurations() {
    let source = Source::new();
    for model_type in ["siglip", "clip_text_model", "chinese_clip"] {
        source.edit_config(|config| config["model_type"] = json!(model_type));
        assert_says(
            &refusal(&source),
            &["model_type is not supported", &format!("value: {model_type}"), "allowed: clip"],
        );
    }
    source.edit_config(|config| {
        config["model_type"] = json!("clip");
        config["vision_config"]["hidden_act"] = json!("swish");
    });
    assert_says(
        &refusal(&source),
        &["field: vision_config.hidden_act", "value: \"swish\"", "quick_gelu, gelu"],
    );
    source.write("config.json", "{\"model_type\": ");
    assert_says(&refusal(&source), &["can't parse CLIP's configuration", "config.json", "EOF"]);
    source.write("config.json", "[]");
    assert_says(&refusal(&source), &["configuration is not a JSON object"]);
    source.remove("config.json");
    assert_says(&refusal(&source), &["can't read CLIP's configuration", "config.json"]);
}

#[test]
fn truncated_weights() {
    let whole = fs::read(Source::new().path("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 7, 100, header - 1, header, whole.len() / 2, whole.len() - 1] {
        let source = Source::new();
        fs::write(source.path("model.safetensors"), &whole[..length]).unwrap();
        let line = refusal(&source);
        assert_says(
            &line,
            &["a weights file is truncated", "model.safetensors", &format!("bytes: {length}, ")],
        );
        let complete = match length {
            _ if length < 8 => 8,
            _ if length < header => header,
            _ => whole.len(),
        };
        assert_says(&line, &[&format!("expected: {complete}")]);
    }
}

#[test]
fn weights_in_another_format() {
    let source = Source::new();
    source.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    assert_says(
        &refusal(&source),
        &["a weights file is not in the safetensors format", "model.safetensors"],
    );

    let broken = Source::new();
    let mut bytes = fs::read(broken.path("model.safetensors")).unwrap();
    bytes[8] = b'[';
    fs::write(broken.path("model.safetensors"), &bytes).unwrap();
    assert_says(&refusal(&broken), &["a weights file is not in the safetensors format"]);

    let longer = Source::new();
    let mut more = fs::read(longer.path("model.safetensors")).unwrap();
    more.push(0);
    fs::write(longer.path("model.safetensors"), &more).unwrap();
    assert_says(
        &refusal(&longer),
        &["a weights file is not in the safetensors format", "expected: "],
    );
}

#[test]
fn tensors() {
    let name = "text_model.encoder.layers.1.mlp.fc2.weight";
    let missing = Source::new();
    missing.edit_weights(|tensors| {
        tensors.remove(name);
    });
    assert_says(
        &refusal(&missing),
        &["a weight is missing", &format!("tensor: {name}"), "expected: [48, 96]"],
    );

    let misshapen = Source::new();
    misshapen.edit_weights(|tensors| tensors.get_mut(name).unwrap().1 = vec![96, 48]);
    assert_says(
        &refusal(&misshapen),
        &["an unexpected shape", name, "expected: [48, 96]", "found: [96, 48]"],
    );

    let integers = Source::new();
    integers.edit_weights(|tensors| tensors.get_mut(name).unwrap().0 = safetensors::Dtype::I32);
    assert_says(
        &refusal(&integers),
        &["an unsupported type", name, "found: I32", "allowed: F32, F16, BF16"],
    );

    let infinite = Source::new();
    infinite.edit_weights(|tensors| {
        tensors.get_mut(name).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert_says(&refusal(&infinite), &["not a finite number", name, "value: NaN"]);

    // Another model's configuration.
    let wider = Source::new();
    wider.edit_config(|config| config["vision_config"]["image_size"] = json!(64));
    wider.remove("preprocessor_config.json");
    assert_says(
        &refusal(&wider),
        &["position_embedding.weight", "expected: [65, 64]", "found: [37, 64]"],
    );
}

#[test]
fn shards() {
    let source = Source::new();
    source.remove("model.safetensors");
    source.write("model.safetensors.index.json", "{}");
    assert_says(&refusal(&source), &["can't read the index of the weights", "weight_map"]);
    let index = |file: &str| json!({"weight_map": {"logit_scale": file}}).to_string();
    source.write("model.safetensors.index.json", &index("model-1-of-1.safetensors"));
    assert_says(&refusal(&source), &["can't read the weights", "model-1-of-1.safetensors"]);
    source.write("model.safetensors.index.json", &index("../model.safetensors"));
    assert_says(&refusal(&source), &["file: ../model.safetensors", "allowed: a file beside it"]);
}

#[test]
fn tokenizers() {
    let source = Source::new();
    source.remove("merges.txt");
    assert_says(
        &refusal(&source),
        &[
            "there is neither tokenizer.json",
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained",
        ],
    );
    source.write("tokenizer.json", "{}");
    assert_says(&refusal(&source), &["the tokenizer can't be used", "tokenizer.json"]);

    // Without an end token, and with more tokens than the tower.
    let made = fs::read_to_string(Source::new().import().path("tokenizer.json")).unwrap();
    let mut endless: serde_json::Value = serde_json::from_str(&made).unwrap();
    endless["post_processor"] = json!(null);
    source.write("tokenizer.json", &endless.to_string());
    assert_says(&refusal(&source), &["does not end a text with the end token", "expected: 511"]);
    source.write("tokenizer.json", &made.replace("511", "512"));
    assert_says(
        &refusal(&source),
        &["more tokens than the text tower", "largest id: 512", "vocab_size: 512"],
    );

    let older = Source::new();
    older.write("vocab.json", "{\"a\": 0}");
    assert_says(&refusal(&older), &["vocab.json", "missing: <|startoftext|>"]);
    let broken = Source::new();
    broken.write("merges.txt", "#version: 0.2\nth\n");
    assert_says(&refusal(&broken), &["merges.txt", "line: th"]);
}

#[test]
fn preprocessing() {
    let source = Source::new();
    source.write("preprocessor_config.json", "{\"size\": 224, \"crop_size\": 224}");
    assert_says(
        &refusal(&source),
        &["does not fit the vision tower", "output size: 224 x 224", "image_size: 48"],
    );
    source.write("preprocessor_config.json", "{\"resample\": 5}");
    assert_says(&refusal(&source), &["preprocessing is not supported", "resample"]);
    source.write("preprocessor_config.json", "{\"image_mean\": [0.5]}");
    assert_says(&refusal(&source), &["can't read the preprocessing", "preprocessor_config.json"]);
    source.write("preprocessor_config.json", "no JSON");
    assert_says(&refusal(&source), &["can't read the preprocessing"]);
}

#[test]
fn nothing_to_import() {
    let source = Source::new();
    source.remove("model.safetensors");
    assert_says(
        &refusal(&source),
        &["neither weights nor ONNX exports", "model.safetensors", "onnx/vision_model.onnx"],
    );
    source.write("pytorch_model.bin", "pickled");
    assert_says(&refusal(&source), &["the weights are pickled", "save_pretrained"]);
}
