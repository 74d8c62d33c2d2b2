//! A model that is missing or damaged, and an ONNX Runtime that is not there: exit codes and
//! what stderr says.

use std::fs;
use std::process::Command;

use fusioncap::bundle;
use kit::{fusioncap, root, stderr};
use tempfile::TempDir;

/// A bundle whose configuration is sound and whose graphs are none.
fn sealed_bundle() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("onnx")).unwrap();
    let files = [
        (
            bundle::CONFIG,
            r#"{"model_type": "fusioncap", "name": "none", "version": "0", "embedding_dim": 4,
                "num_patches": 1, "prefix_length": 1, "hidden_size": 4,
                "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8, "max_length": 8,
                "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "num_candidates": 2}"#,
        ),
        (
            bundle::GENERATION_CONFIG,
            r#"{"num_beams": 1, "max_new_tokens": 4, "length_penalty": 1.0,
                "no_repeat_ngram_size": 0}"#,
        ),
        (
            bundle::PREPROCESSOR_CONFIG,
            r#"{"size": 8, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}"#,
        ),
        (bundle::TOKENIZER, "{}"),
        (bundle::VISION, "none"),
        (bundle::PREFIX, "none"),
        (bundle::DECODER, "none"),
    ];
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    bundle::seal(dir.path()).unwrap();
    dir
}

fn worker(model: &str) -> Command {
    fusioncap(&["worker", "--brokers", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--model", model])
}

fn caption(model: &str) -> Command {
    let mut command = fusioncap(&["caption", "--model", model]);
    command.arg(root("samples/cat.jpg"));
    command
}

/// Found by fuzzing: the parser of tokenizers panics on both.
#[test]
fn a_tokenizer_that_is_none_is_refused() {
    let dir = sealed_bundle();
    let path = dir.path().join(bundle::TOKENIZER);
    let decoder = r#"{"type": "ByteLevel", "trim_offs   ets": true}"#.replace("   ", "\n");
    let whole = r#"{"version": "1.0", "added_tokens": [], "decoder": DECODER,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    let lone = r#"{"type": "\ud800"}"#;
    for (decoder, reason) in
        [(decoder.as_str(), "control character"), (lone, "its parser panicked")]
    {
        fs::write(&path, whole.replace("DECODER", decoder)).unwrap();
        let error = bundle::read_tokenizer(&path).unwrap_err();
        assert_eq!(error.kind(), fusioncap::ErrorKind::Bundle);
        assert!(error.chain().contains(reason), "{}", error.chain());
    }
    let sound = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true}"#;
    fs::write(&path, whole.replace("DECODER", sound)).unwrap();
    assert!(bundle::read_tokenizer(&path).is_ok());
}

#[test]
fn a_missing_model_is_a_wrong_configuration() {
    for (mut command, name) in [(worker("no/such"), "model.path"), (caption("no/such"), "no/such")]
    {
        let output = command.output().unwrap();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        let last = errors.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(name), "{errors}");
    }
}

#[test]
fn a_damaged_model_names_the_file_and_the_digests() {
    let model = sealed_bundle();
    fs::write(model.path().join(bundle::DECODER), "nome").unwrap();
    let path = model.path().to_str().unwrap();
    for mut command in [worker(path), caption(path)] {
        let output = command.output().unwrap();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("error: a file of the bundle is damaged"), "{errors}");
        assert!(errors.contains("onnx/decoder.onnx") && errors.contains("sha256"), "{errors}");
    }
}

#[test]
fn a_model_that_lacks_a_file_names_it() {
    let model = sealed_bundle();
    fs::remove_file(model.path().join(bundle::TOKENIZER)).unwrap();
    let output = caption(model.path().to_str().unwrap()).output().unwrap();
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("missing") && errors.contains("tokenizer.json"), "{errors}");
}

#[test]
fn a_missing_onnx_runtime_names_the_library_and_the_variable() {
    let path = root("models/random");
    let path = path.to_str().unwrap();
    for mut command in [worker(path), caption(path)] {
        let output = command.env("ORT_DYLIB_PATH", "/no/such/libonnxruntime.so").output().unwrap();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("/no/such/libonnxruntime.so"), "{errors}");
        assert!(errors.contains("ORT_DYLIB_PATH"), "{errors}");
    }
}
