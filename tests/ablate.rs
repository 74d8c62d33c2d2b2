//! `fusioncap ablate` on an encoder and models as small as they get.
#![cfg(feature = "train")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fusioncap::bundle::Bundle;
use fusioncap::encoder::random;
use tempfile::TempDir;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        random::build(&folder.path().join("encoder"), 7).unwrap();
        let short = fs::read_to_string(project("tests/fixtures/train/random.toml")).unwrap();
        let short = short.replace("epochs = 24", "epochs = 1").replace("\"none\"", "\"fixed\"");
        fs::write(folder.path().join("short.toml"), short).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn ablate(&self, corpus: &Path, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_fusioncap"))
            .args(["ablate", "--seeds", "2", "--encoder"])
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
    let workshop = Workshop::new();
    let corpus = project("tests/fixtures/train/captions.txt");
    let run = || {
        let output = workshop.ablate(&corpus, &["--proxies", "12"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        (String::from_utf8(output.stdout).unwrap(), errors)
    };
    let (table, _) = run();
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].contains("CIDEr-D, 12 proxies"), "{table}");
    let methods =
        ["noise (CapDec)", "projection (DeCap)", "noise + projection", "+ local (FusionCap)"];
    for (row, method) in rows[1..].iter().zip(methods) {
        assert!(row.starts_with(method) && row.contains(" to "), "{row}");
    }
    assert_eq!(rows.len(), 5, "{table}");

    // Only FusionCap looks at patches, and only CapDec has no memory of captions.
    let inputs = |name: &str| {
        let bundle = Bundle::open(&workshop.path("out").join(name)).unwrap();
        let prefix = fs::read(bundle.path("onnx/prefix.onnx")).unwrap();
        let holds = |text: &str| prefix.windows(text.len()).any(|window| window == text.as_bytes());
        (holds("patch_embeds"), holds("memory_f16"))
    };
    let first = fusioncap::train::settings::Settings::load(None).unwrap().seed;
    assert_eq!(inputs(&format!("capdec-{first}")), (false, false));
    assert_eq!(inputs(&format!("decap-{first}")), (false, true));
    assert_eq!(inputs(&format!("fusioncap-{}", first + 1)), (true, true));

    // What is there is not trained again, and scores the same.
    let (again, errors) = run();
    assert_eq!(again, table);
    assert!(!errors.contains("training:"), "{errors}");
}

#[test]
fn a_corpus_that_is_too_small_is_refused() {
    let workshop = Workshop::new();
    let corpus = workshop.path("three.txt");
    fs::write(&corpus, "a dog runs fast\na cat sleeps here\na bus waits there\n").unwrap();
    let refused = |output: Output| {
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused(workshop.ablate(&corpus, &[]));
    assert!(error.contains("no captions in image order (captions: 3"), "{error}");
    let corpus = project("tests/fixtures/train/captions.txt");
    let error = refused(workshop.ablate(&corpus, &["--proxies", "5000"]));
    assert!(error.contains("--proxies is out of range (value: 5000"), "{error}");
}
