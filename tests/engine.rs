//! The engine on bundles of the repository: the same photo, the same caption, whatever shares its
//! batch; and what can't be loaded, refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fusioncap::ErrorKind;
use fusioncap::bundle::{self, Bundle};
use fusioncap::config::{Limits, Model, Provider, Runtime};
use fusioncap::engine::{Caption, Engine};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn engine(model: &str, batch_size: usize, num_beams: Option<usize>) -> Engine {
    let path = root(model);
    let settings = Model { path: path.display().to_string(), embeddings: false, num_beams };
    let bundle = Bundle::open(&path).unwrap();
    Engine::load(bundle, &Runtime::default(), &settings, batch_size).unwrap()
}

/// The sample photos at the model's input size.
fn photos(engine: &Engine) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root("samples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    let decode = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        engine.preprocessor().decode(&bytes, &Limits::default()).unwrap().rgb
    };
    paths.iter().map(decode).collect()
}

fn caption(engine: &mut Engine, photos: &[&[u8]]) -> Vec<Caption> {
    engine.caption(photos).unwrap()
}

fn assert_same_caption_in_any_company(model: &str) {
    let mut engine = engine(model, 4, None);
    let photos = photos(&engine);
    assert!(photos.len() >= 13);
    let views: Vec<&[u8]> = photos.iter().map(Vec::as_slice).collect();
    let alone: Vec<Caption> =
        views.iter().map(|photo| caption(&mut engine, &[photo]).remove(0)).collect();
    let full: Vec<Caption> =
        views.chunks(4).flat_map(|batch| caption(&mut engine, batch)).collect();
    assert_eq!(alone, full, "{model}: alone and in a full batch");
    let padded: Vec<Caption> =
        views.chunks(3).flat_map(|batch| caption(&mut engine, batch)).collect();
    assert_eq!(alone, padded, "{model}: alone and in a padded batch");
    let mut backwards: Vec<&[u8]> = views.clone();
    backwards.reverse();
    let mut reversed: Vec<Caption> =
        backwards.chunks(4).flat_map(|batch| caption(&mut engine, batch)).collect();
    reversed.reverse();
    assert_eq!(alone, reversed, "{model}: in other company");
    assert!(alone.iter().all(|found| !found.text.is_empty() && found.score < 0.0));
    let texts: std::collections::BTreeSet<&str> =
        alone.iter().map(|found| found.text.as_str()).collect();
    assert!(texts.len() > 3, "the captions depend on the photos: {texts:?}");
}

#[test]
fn the_same_photo_gives_the_same_caption_alone_full_and_padded() {
    assert_same_caption_in_any_company("models/random");
    assert_same_caption_in_any_company("models/tiny");
}

#[test]
fn embeddings_have_unit_length() {
    let mut engine = engine("models/random", 1, None);
    let photos = photos(&engine);
    let found = caption(&mut engine, &[&photos[0]]).remove(0);
    assert_eq!(found.embedding.len(), engine.bundle().config.embedding_dim);
    let length: f32 = found.embedding.iter().map(|entry| entry * entry).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
}

#[test]
fn a_wider_beam_never_scores_worse_in_sum() {
    let mut greedy = engine("models/tiny", 1, Some(1));
    let mut wide = engine("models/tiny", 1, Some(4));
    let photos = photos(&greedy);
    let mean = |engine: &mut Engine| {
        let scores = photos.iter().map(|photo| caption(engine, &[photo])[0].score);
        scores.sum::<f32>() / photos.len() as f32
    };
    let (one, four) = (mean(&mut greedy), mean(&mut wide));
    assert!(four >= one, "beams 1: {one}, beams 4: {four}");
}

#[test]
fn a_beam_width_the_bundle_cannot_do_is_refused() {
    let path = root("models/random");
    let bundle = Bundle::open(&path).unwrap();
    let settings = Model { path: String::new(), embeddings: false, num_beams: Some(1_000) };
    let error = Engine::load(bundle, &Runtime::default(), &settings, 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(
        text.contains("model.num_beams") && text.contains("1000") && text.contains("1 to"),
        "{text}"
    );
}

#[test]
fn an_accelerator_that_is_not_there_is_an_error() {
    let runtime = Runtime { providers: vec![Provider::Cuda], ..Runtime::default() };
    let path = root("models/random");
    let settings = Model { path: String::new(), embeddings: false, num_beams: None };
    let error = Engine::load(Bundle::open(&path).unwrap(), &runtime, &settings, 1).err().unwrap();
    assert!(error.to_string().contains("runtime.providers"), "{error}");
}

#[test]
fn a_damaged_file_is_found_by_its_digest() {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&root("models/random"), copy.path());
    assert!(Bundle::open(copy.path()).is_ok());
    let path = copy.path().join(bundle::DECODER);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Bundle::open(copy.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bundle);
    let text = error.to_string();
    assert!(text.contains("damaged") && text.contains("decoder.onnx"), "{text}");
    fs::remove_file(&path).unwrap();
    assert!(Bundle::open(copy.path()).unwrap_err().to_string().contains("missing"));
}

#[test]
fn a_missing_library_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_fusioncap"))
        .args(["caption", "--model"])
        .arg(root("models/random"))
        .arg(root("samples/cat.jpg"))
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("/nowhere/libonnxruntime.so"), "{errors}");
    assert!(errors.contains("make onnxruntime"), "{errors}");
}

#[test]
fn files_are_captioned_in_order_and_what_fails_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root("samples/cat.jpg"), folder.path().join("b.jpg")).unwrap();
    fs::write(folder.path().join("a.jpg"), "<html>").unwrap();
    fs::copy(root("samples/rocket.jpg"), folder.path().join("c.JPG")).unwrap();
    fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fusioncap"))
        .args(["caption", "--model"])
        .arg(root("models/random"))
        .arg(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0]["error"].as_str().unwrap().contains("HTML"), "{text}");
    for (line, name) in lines[1..].iter().zip(["b.jpg", "c.JPG"]) {
        assert!(line["path"].as_str().unwrap().ends_with(name), "{text}");
        assert!(line["score"].as_f64().unwrap() < 0.0, "{text}");
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
