//! Import, training and captioning with the binary.

use std::fs;
use std::path::Path;
use std::process::Output;

use fusioncap::bundle::Bundle;
use fusioncap::encoder::clip::tower::Storage;
use fusioncap::onnx::external::data_path;
use kit::{root, stderr, stdout};

use super::source::Source;

fn fusioncap(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_ref()).collect();
    kit::fusioncap(&arguments).output().unwrap()
}

#[track_caller]
fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output)
}

/// Trains a full FusionCap with the encoder in `folder`, evaluates it on a photo and captions it.
fn train_and_caption(folder: &Path) -> serde_json::Value {
    let short = fs::read_to_string(root("tests/fixtures/train/random.toml")).unwrap();
    let settings = folder.join("short.toml");
    let whole = short
        .replace("epochs = 24", "epochs = 1")
        .replace("kind = \"none\"", "kind = \"learned\"")
        .replace("enabled = false", "enabled = true");
    fs::write(&settings, whole).unwrap();
    let (encoder, out) = (folder.join("encoder"), folder.join("bundle"));
    succeed(&fusioncap(&[
        &"train",
        &"--encoder",
        &encoder,
        &"--corpus",
        &root("tests/fixtures/train/captions.txt"),
        &"--settings",
        &settings,
        &"--cache",
        &folder.join("cache"),
        &"--out",
        &out,
        &"--with-text-tower",
    ]));
    let photos = root("tests/data/clip-preprocess");
    let photo = photos.join("cat-small-60x40.png");
    let references = folder.join("references.json");
    let written = serde_json::json!({
        "images": [{"id": 1, "file_name": "cat-small-60x40.png"}],
        "annotations": [{"image_id": 1, "caption": "a cat looks up"}],
    });
    fs::write(&references, written.to_string()).unwrap();
    let measured = succeed(&fusioncap(&[
        &"evaluate",
        &"--model",
        &out,
        &"--images",
        &photos,
        &"--references",
        &references,
        &"--html",
        &folder.join("report.html"),
    ]));
    assert!(measured.starts_with("1 images") && measured.contains("RefCLIPScore"), "{measured}");
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg viewBox=\"0 0 6 6\">").count(), 2, "one attention map per query");
    let lines = succeed(&fusioncap(&[&"caption", &"--model", &out, &photo]));
    assert_eq!(lines.lines().count(), 1, "{lines}");
    serde_json::from_str(&lines).unwrap()
}

#[test]
fn a_clip_becomes_a_captioner() {
    let source = Source::new();
    let folder = tempfile::tempdir().unwrap();
    let encoder = folder.path().join("encoder");
    let said = succeed(&fusioncap(&[
        &"clip",
        &"import",
        &source.dir(),
        &"--out",
        &encoder,
        &"--dtype",
        &"fp16",
        &"--name",
        &"tiny-clip",
    ]));
    assert!(said.contains("tiny-clip") && said.contains("36 patches"), "{said}");
    let line = train_and_caption(folder.path());
    assert!(line["caption"].is_string() && line["score"].as_f64().unwrap() < 0.0, "{line}");
    let bundle = Bundle::open(&folder.path().join("bundle")).unwrap();
    assert_eq!((bundle.config.embedding_dim, bundle.config.num_patches), (40, 36));
    let size = fusioncap::image::Preprocessor::new(bundle.preprocessor.clone()).unwrap();
    assert_eq!(size.input_size(), (48, 48));
    let card = fs::read_to_string(bundle.path("README.md")).unwrap();
    assert!(card.contains("tiny-clip"), "{card}");
}

#[test]
fn external_data_reaches_the_bundle() {
    let source = Source::new();
    let folder = tempfile::tempdir().unwrap();
    source.import_to(&folder.path().join("encoder"), Storage::Source, 0).unwrap();
    let line = train_and_caption(folder.path());
    assert!(line["caption"].is_string(), "{line}");
    let bundle = Bundle::open(&folder.path().join("bundle")).unwrap();
    assert!(data_path(&bundle.path("onnx/vision.onnx")).is_file());
}

#[test]
fn a_refusal_is_one_line_and_exit_code_2() {
    let source = Source::new();
    fs::write(source.path("model.safetensors"), [0; 4]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("encoder");
    let output = fusioncap(&[&"clip", &"import", &source.dir(), &"--out", &out]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(output.stdout.is_empty());
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.starts_with("error: a weights file is truncated"), "{errors}");
}
