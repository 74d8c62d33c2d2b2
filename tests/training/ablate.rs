//! `fusioncap ablate` with a minimal encoder and models.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use fusioncap::bundle::Bundle;
use fusioncap::encoder::random;
use kit::{root, stderr, stdout};
use tempfile::TempDir;

struct Workspace(TempDir);

impl Workspace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        random::build(&folder.path().join("encoder"), 7).unwrap();
        let short = fs::read_to_string(root("tests/fixtures/train/random.toml")).unwrap();
        let short = short.replace("epochs = 24", "epochs = 1").replace("\"none\"", "\"fixed\"");
        fs::write(folder.path().join("short.toml"), short).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn change_settings(&self, from: &str, to: &str) {
        let path = self.path("short.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        fs::write(&path, text.replace(from, to)).unwrap();
    }

    fn ablate(&self, corpus: &Path, more: &[&str]) -> Output {
        kit::fusioncap(&["ablate", "--seeds", "2", "--encoder"])
            .arg(self.path("encoder"))
            .arg("--corpus")
            .arg(corpus)
            .arg("--settings")
            .arg(self.path("short.toml"))
            .arg("--out")
            .arg(self.path("out"))
            .args(more)
            .output()
            .unwrap()
    }
}

#[test]
fn every_method_gets_its_row() {
    let workspace = Workspace::new();
    let corpus = root("tests/fixtures/train/captions.txt");
    let run = || {
        let output = workspace.ablate(&corpus, &["--proxies", "12"]);
        let errors = stderr(&output);
        assert!(output.status.success(), "{errors}");
        (stdout(&output), errors)
    };
    let (table, _) = run();
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].contains("CIDEr-D, 12 proxies"), "{table}");
    assert!(table.contains("95 % interval over images"), "{table}");
    let methods =
        ["noise (CapDec)", "projection (DeCap)", "noise + projection", "+ local (FusionCap)"];
    for (row, method) in rows[1..].iter().zip(methods) {
        let figures = [" to ", ") ", ".."];
        assert!(row.starts_with(method) && figures.iter().all(|part| row.contains(part)), "{row}");
    }
    assert!(rows.len() == 7 && rows[6].starts_with("Seeds per method: 2."), "{table}");

    // Only FusionCap uses patches, and only CapDec has no memory of captions.
    let inputs = |name: &str| {
        let bundle = Bundle::open(&workspace.path("out").join(name)).unwrap();
        let prefix = fs::read(bundle.path("onnx/prefix.onnx")).unwrap();
        let holds = |text: &str| prefix.windows(text.len()).any(|window| window == text.as_bytes());
        (holds("patch_embeds"), holds("memory_f16"))
    };
    let first = fusioncap::train::settings::Settings::load(None).unwrap().seed;
    assert_eq!(inputs(&format!("capdec-{first}")), (false, false));
    assert_eq!(inputs(&format!("decap-{first}")), (false, true));
    assert_eq!(inputs(&format!("fusioncap-{}", first + 1)), (true, true));

    // Existing bundles are not trained again, and score the same.
    let (again, errors) = run();
    assert_eq!(again, table);
    assert!(!errors.contains("training:"), "{errors}");

    // Bundles of other settings or another split are refused.
    let study = workspace.path("out").display().to_string();
    let output = workspace.ablate(&corpus, &["--proxies", "13"]);
    let error = refused(&output);
    assert!(error.contains("differs: proxies (12, now 13)") && error.contains(&study), "{error}");
    workspace.change_settings("patience = 0", "patience = 1");
    let error = refused(&workspace.ablate(&corpus, &["--proxies", "12"]));
    assert!(error.contains("differs: settings.patience (0, now 1)"), "{error}");
}

fn refused(output: &Output) -> String {
    let error = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    error
}

#[test]
fn a_corpus_that_is_too_small_is_refused() {
    let workspace = Workspace::new();
    let corpus = workspace.path("three.txt");
    fs::write(&corpus, "a dog runs fast\na cat sleeps here\na bus waits there\n").unwrap();
    let error = refused(&workspace.ablate(&corpus, &[]));
    assert!(error.contains("not in image order (captions: 3"), "{error}");
    let corpus = root("tests/fixtures/train/captions.txt");
    // All 96 images would leave none for training.
    for proxies in ["5000", "96"] {
        let error = refused(&workspace.ablate(&corpus, &["--proxies", proxies]));
        let reason = format!("--proxies is out of range (value: {proxies}, images: 96");
        assert!(error.contains(&reason), "{error}");
    }
    let error = refused(&workspace.ablate(&corpus, &["--proxies", "0"]));
    assert!(error.contains("--proxies <N>"), "{error}");
}

#[test]
fn unusable_settings_and_corpora_are_refused() {
    let workspace = Workspace::new();
    let corpus = root("tests/fixtures/train/captions.txt");
    let ablate = || refused(&workspace.ablate(&corpus, &["--proxies", "12"]));
    workspace.change_settings("\"fixed\"", "\"none\"");
    let error = ablate();
    assert!(error.contains("noise.kind: the methods to compare need noise"), "{error}");
    workspace.change_settings("\"none\"", "\"fixed\"");
    workspace.change_settings("[local]", "[local]\nnoun_count = 400");
    let error = ablate();
    assert!(error.contains("no frequent noun for the proxies (local.noun_count: 400"), "{error}");

    // The captions of each image are far apart.
    let text = fs::read_to_string(&corpus).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let shuffled: Vec<&str> =
        (0..lines.len()).map(|place| lines[place * 97 % lines.len()]).collect();
    let elsewhere = workspace.path("shuffled.txt");
    fs::write(&elsewhere, shuffled.join("\n")).unwrap();
    let error = refused(&workspace.ablate(&elsewhere, &["--proxies", "12"]));
    assert!(error.contains("not in image order (cosine within"), "{error}");
}
