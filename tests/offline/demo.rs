//! The real binary's `demo`: embedded Kafka and S3, the worker, and a bundle of the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use kit::{root, stderr, stdout};

/// A bundle of the repository, by its smallest first; any of them captions.
fn bundle() -> PathBuf {
    let bundles = ["random", "tiny"].map(|name| root("models").join(name));
    bundles.into_iter().find(|bundle| bundle.is_dir()).expect("a bundle below models/")
}

fn sample(name: &str) -> PathBuf {
    root("samples").join(name)
}

/// Runs `fusioncap demo` in `folder`.
fn demo(folder: &Path, arguments: &[&Path]) -> Output {
    // With the variable, an internal error would add a backtrace.
    kit::fusioncap(&["demo"])
        .args(arguments)
        .current_dir(folder)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

#[test]
fn every_photo_comes_back_once() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["cat.jpg", "coffee.jpg", "rocket.jpg"];
    let photos = names.map(sample);
    let model = bundle();
    let mut arguments = vec![Path::new("--model"), model.as_path()];
    arguments.extend(photos.iter().map(PathBuf::as_path));
    let output = demo(folder.path(), &arguments);
    let (text, errors) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{text}\n{errors}");

    for name in names {
        let line = text.lines().find(|line| line.starts_with(name)).expect(name);
        let (caption, score) =
            line.trim_start_matches(name).trim().rsplit_once(' ').expect("a caption, a score");
        assert!(!caption.trim().is_empty(), "{line}");
        assert!(score.parse::<f64>().unwrap() < 0.0, "{line}");
    }
    assert!(text.contains("captioned 3 of 3 images in "), "{text}");
    assert!(text.contains("every photo came back exactly once"), "{text}");

    let page = fs::read_to_string(folder.path().join("fusioncap-demo.html")).unwrap();
    assert_eq!(page.matches("data:image/jpeg;base64,").count(), names.len());
    for name in names {
        assert!(page.contains(name));
    }
}

#[test]
fn what_is_no_image_comes_back_as_a_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("notes <1>.txt");
    fs::write(&notes, "these are notes, not pixels").unwrap();
    let page = folder.path().join("page.html");
    let (cat, model) = (sample("cat.jpg"), bundle());
    let arguments =
        [&cat, &notes, Path::new("--model"), &model, Path::new("--html"), page.as_path()];
    let output = demo(folder.path(), &arguments);
    let (text, errors) = (stdout(&output), stderr(&output));

    assert_eq!(output.status.code(), Some(1), "{text}\n{errors}");
    let line = text.lines().find(|line| line.starts_with("notes <1>.txt")).expect("a line");
    assert!(line.contains("not_an_image"), "{line}");
    assert!(text.contains("captioned 1 of 2 images in "), "{text}");
    assert!(errors.contains("not every photo came back as exactly one caption"), "{errors}");
    assert!(!errors.contains(" 0: "), "a backtrace: {errors}");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("notes &lt;1&gt;.txt") && html.contains("not_an_image"));
}

#[test]
fn without_a_model_it_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let cat = sample("cat.jpg");
    let output = demo(folder.path(), &[&cat]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no model bundle: name one with --model"));
    assert!(!folder.path().join("fusioncap-demo.html").exists());
}

#[test]
fn a_path_that_does_not_exist_is_a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        demo(folder.path(), &[Path::new("--model"), Path::new("."), Path::new("none.jpg")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("none.jpg"), "{}", stderr(&output));
}

#[test]
fn a_real_kafka_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (cat, model) = (sample("cat.jpg"), bundle());
    let nobody = Path::new("127.0.0.1:9");
    let arguments = [&cat, Path::new("--model"), &model, Path::new("--brokers"), nobody];
    let output = demo(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("127.0.0.1:9"), "{}", stderr(&output));
}
