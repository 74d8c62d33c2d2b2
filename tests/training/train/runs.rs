//! Training end to end: outputs, early stopping, resuming, fine-tuning and refusals.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fusioncap::bundle::Bundle;
use fusioncap::config::{Model, Runtime};
use fusioncap::encoder::random;
use fusioncap::engine::Engine;
use fusioncap::model::local::LocalSource;
use fusioncap::train::curve::Epoch;
use fusioncap::train::device::DeviceKind;
use fusioncap::train::settings::Settings;
use fusioncap::train::{self, Request};
use fusioncap::{ErrorKind, Result};
use tempfile::TempDir;

use super::{fixture, settings, take_turn};

/// A directory with an encoder, a cache and the bundle.
struct Workspace {
    folder: TempDir,
    stop: Arc<AtomicBool>,
    from: Option<PathBuf>,
    text_tower: bool,
}

impl Workspace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        random::build(&folder.path().join("encoder"), 7).unwrap();
        Self { folder, stop: Arc::default(), from: None, text_tower: false }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    fn train(&self, settings: &Settings, resume: bool) -> Result<Vec<Epoch>> {
        self.train_on(&fixture("captions.txt"), settings, resume)
    }

    fn train_on(&self, corpus: &Path, settings: &Settings, resume: bool) -> Result<Vec<Epoch>> {
        let _turn = take_turn();
        train::run(&Request {
            encoder: self.folder.path().join("encoder"),
            corpora: vec![corpus.to_path_buf()],
            out: self.out(),
            cache: self.folder.path().join("cache"),
            checkpoint: self.folder.path().join("cache/checkpoint"),
            settings: settings.clone(),
            from: self.from.clone(),
            notes: None,
            text_tower: self.text_tower,
            runtime: Runtime::default(),
            device: DeviceKind::Cpu,
            resume,
            stop: Arc::clone(&self.stop),
        })
    }
}

fn load(bundle: Bundle, batch_size: usize) -> Engine {
    let model = Model::default();
    Engine::load(bundle, &Runtime::default(), &model, batch_size).unwrap()
}

/// The pixels of a gradient.
fn picture(engine: &Engine, shade: u8) -> Vec<u8> {
    let (height, width) = engine.preprocessor().input_size();
    (0..height * width * 3).map(|index| shade.wrapping_mul((index % 251) as u8)).collect()
}

#[test]
fn training_writes_a_bundle_that_captions() {
    let workspace = Workspace::new();
    let curve = workspace.train(&settings(), false).unwrap();
    let (first, last) = (curve.first().unwrap(), curve.last().unwrap());
    assert_eq!((curve.len(), last.epoch), (2, 2));
    assert!(last.training_loss < first.training_loss - 0.3, "{curve:?}");
    assert!(last.held_out_loss < first.held_out_loss, "{curve:?}");

    let bundle = Bundle::open(&workspace.out()).unwrap();
    assert_eq!(bundle.config.hidden_size, 32);
    assert_eq!(bundle.config.name, "fusioncap-bundle");
    let card = std::fs::read_to_string(bundle.path("README.md")).unwrap();
    for part in ["CC BY 4.0", "SHA-256", "seed = ", "| 2 |", "random weights, seed 7"] {
        assert!(card.contains(part), "{part} in {card}");
    }

    let mut engine = load(bundle, 2);
    let (dark, light) = (picture(&engine, 1), picture(&engine, 200));
    let captions = engine.caption(&[&dark, &light]).unwrap();
    assert!(captions.iter().all(|caption| caption.score < 0.0), "{captions:?}");
    assert_ne!(captions[0].embedding, captions[1].embedding);
    assert_eq!(engine.caption(&[&dark]).unwrap()[0], captions[0]);
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let settings = settings();
    let whole = Workspace::new();
    let expected = whole.train(&settings, false).unwrap();

    // Stopped after each of the first eight steps, past the end of the first epoch.
    let pieces = Workspace::new();
    pieces.stop.store(true, Ordering::Relaxed);
    for step in 1..=8 {
        let error = pieces.train(&settings, step > 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Runtime, "{error}");
        assert!(error.to_string().ends_with(&format!("(step: {step})")), "{error}");
    }
    pieces.stop.store(false, Ordering::Relaxed);
    let resumed = pieces.train(&settings, true).unwrap();

    assert_eq!(resumed, expected);
    for name in ["onnx/prefix.onnx", "onnx/decoder.onnx", "curve.svg", "README.md"] {
        let read = |workspace: &Workspace| std::fs::read(workspace.out().join(name)).unwrap();
        assert_eq!(read(&pieces), read(&whole), "{name}");
    }
}

#[test]
fn training_stops_early_and_keeps_the_best_epoch() {
    let mut settings = settings();
    // Enough steps to overfit.
    (settings.epochs, settings.batch_size, settings.learning_rate) = (30, 16, 2e-2);
    settings.patience = 2;
    let stopped = Workspace::new();
    let curve = stopped.train(&settings, false).unwrap();
    let losses: Vec<f64> = curve.iter().map(|epoch| epoch.held_out_loss).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(curve.len() < 30, "{losses:?}");
    assert_eq!(losses[losses.len() - 3], best, "two epochs after the best: {losses:?}");

    // Early stopping writes a checkpoint of the last step, so resuming has no steps left.
    std::fs::remove_dir_all(stopped.out()).unwrap();
    assert_eq!(stopped.train(&settings, true).unwrap(), curve);
    let card = std::fs::read_to_string(stopped.out().join("README.md")).unwrap();
    let steps = curve.len() * 448_usize.div_ceil(16);
    assert!(card.contains(&format!(", {steps} steps.")), "{card}");

    // Without early stopping the run is the same up to there; the bundle differs only if better.
    settings.patience = 0;
    let model =
        |workspace: &Workspace| std::fs::read(workspace.out().join("onnx/decoder.onnx")).unwrap();
    let whole = Workspace::new();
    let longer = whole.train(&settings, false).unwrap();
    assert_eq!(longer[..curve.len()], curve);
    let overall = longer.iter().map(|epoch| epoch.held_out_loss).fold(f64::INFINITY, f64::min);
    assert_eq!(model(&whole) == model(&stopped), overall == best);
}

#[test]
fn token_states_can_replace_nouns() {
    let workspace = Workspace::new();
    let mut settings = settings();
    settings.local.enabled = true;
    settings.local.source = LocalSource::Tokens;
    let curve = workspace.train(&settings, false).unwrap();
    assert!(curve[1].held_out_loss < curve[0].held_out_loss, "{curve:?}");
    let mut engine = load(Bundle::open(&workspace.out()).unwrap(), 1);
    engine.keep_attention();
    let picture = picture(&engine, 200);
    let caption = &engine.caption(&[&picture]).unwrap()[0];
    // Two queries, each on the eight of sixteen patches nearest to the image embedding.
    assert_eq!(caption.attention.len(), 2);
    for query in &caption.attention {
        let attended = query.iter().filter(|share| **share > 0.0).count();
        assert_eq!((query.len(), attended), (16, 8));
    }
}

#[test]
fn fine_tuning_starts_from_the_weights_of_a_bundle() {
    let mut settings = settings();
    settings.local.enabled = true;
    let first = Workspace::new();
    let learnt = first.train(&settings, false).unwrap();
    let mut second = Workspace::new();
    second.from = Some(first.out());
    settings.epochs = 1;
    // At this rate the weights stay as loaded.
    settings.learning_rate = 1e-12;
    settings.noise.sigma = 0.0;
    let tuned = second.train(&settings, false).unwrap();
    let (ended, begun) = (learnt[1].held_out_loss, tuned[0].held_out_loss);
    assert!((ended - begun).abs() < 0.05, "{begun} after {ended}");
    let card = std::fs::read_to_string(second.out().join("README.md")).unwrap();
    let digest = Bundle::open(&first.out()).unwrap().digest().to_owned();
    assert!(card.contains(&format!("fine-tuned from the bundle `{digest}`")), "{card}");

    settings.shape.intermediate_size *= 2;
    let refused = second.train(&settings, false).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    let reason = "--from: the bundle's model is incompatible (weight: 0.expand.weight";
    assert!(refused.to_string().starts_with(reason), "{refused}");
}

/// Differences that shapes do not show.
#[test]
fn fine_tuning_an_incompatible_bundle_is_refused() {
    let mut settings = settings();
    settings.epochs = 1;
    let first = Workspace::new();
    first.train(&settings, false).unwrap();
    let mut second = Workspace::new();
    second.from = Some(first.out());
    let assert_refused = |settings: &Settings, differs: &str| {
        let refused = second.train(settings, false).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        let reason = format!("--from: the bundle's model is incompatible (differs: {differs})");
        assert_eq!(refused.to_string(), reason);
    };
    let mut heads = settings.clone();
    heads.shape.num_attention_heads = 4;
    assert_refused(&heads, "shape.num_attention_heads, expected: 4, found: 2");
    let mut switched = settings.clone();
    switched.projection.enabled = false;
    assert_refused(&switched, "projection.enabled, expected: false, found: true");
    random::build(&second.folder.path().join("encoder"), 8).unwrap();
    assert_refused(&settings, "encoder, expected: random 8, found: random 7");
}

#[test]
fn a_bundle_is_replaced_completely_or_not_at_all() {
    let mut settings = settings();
    settings.epochs = 1;
    let mut workspace = Workspace::new();
    workspace.text_tower = true;
    // The external data of a larger encoder is copied too.
    let encoder = workspace.folder.path().join("encoder");
    std::fs::write(encoder.join("onnx/text.onnx.data"), "weights").unwrap();
    workspace.train(&settings, false).unwrap();
    let tower = ["onnx/text.onnx", "onnx/text.onnx.data", "text_tokenizer.json"];
    let there = |name: &&str| workspace.out().join(name).is_file();
    assert!(tower.iter().all(there));
    let before = Bundle::open(&workspace.out()).unwrap().digest().to_owned();

    // A failed export.
    let vision = encoder.join("onnx/vision.onnx");
    std::fs::rename(&vision, encoder.join("aside")).unwrap();
    let error = workspace.train(&settings, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(Bundle::open(&workspace.out()).unwrap().digest(), before);
    std::fs::rename(encoder.join("aside"), &vision).unwrap();

    // An interrupted export, and a foreign file.
    std::fs::create_dir(workspace.out().join(".export-cut")).unwrap();
    std::fs::write(workspace.out().join("notes.txt"), "mine").unwrap();
    // A variant of the old bundle.
    std::fs::create_dir_all(workspace.out().join("variants/int8")).unwrap();
    workspace.text_tower = false;
    workspace.train(&settings, false).unwrap();
    let there = |name: &&str| workspace.out().join(name).is_file();
    assert!(!tower.iter().any(there));
    Bundle::open(&workspace.out()).unwrap();
    let manifest = std::fs::read_to_string(workspace.out().join("manifest.json")).unwrap();
    assert!(!manifest.contains("notes") && !manifest.contains("text.onnx"), "{manifest}");
    let mut names: Vec<String> = std::fs::read_dir(workspace.out())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "README.md",
        "config.json",
        "curve.svg",
        "generation_config.json",
        "manifest.json",
        "notes.txt",
        "onnx",
        "preprocessor_config.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_checkpoint_resumes_only_its_own_run() {
    let workspace = Workspace::new();
    let missing = workspace.train(&settings(), true).unwrap_err();
    assert_eq!(missing.exit_code(), 2);
    assert!(missing.to_string().contains("--resume: there is no checkpoint"), "{missing}");

    workspace.stop.store(true, Ordering::Relaxed);
    workspace.train(&settings(), false).unwrap_err();
    let mut others = settings();
    others.seed += 1;
    let refused = workspace.train(&others, true).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().contains("differs: settings"), "{refused}");
}

#[test]
fn an_unusable_corpus_is_refused() {
    let workspace = Workspace::new();
    let corpus = workspace.folder.path().join("corpus.txt");
    let mut settings = settings();
    let endless = "x".repeat(100_000);
    for (text, reason) in [
        (String::new(), "captions: 0, skipped: none, allowed: at least 96"),
        ("a dog runs fast\n".repeat(500), "captions: 1, skipped: 499 duplicate"),
        (format!("{endless}\n"), "captions: 0, skipped: 1 too long"),
    ] {
        std::fs::write(&corpus, text).unwrap();
        let refused = workspace.train_on(&corpus, &settings, false).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains(reason), "{refused}");
    }
    std::fs::write(&corpus, b"\xff\xfe\n\xc3\x28\n").unwrap();
    let refused = workspace.train_on(&corpus, &settings, false).unwrap_err();
    assert!(refused.to_string().contains("skipped: 2 not UTF-8"), "{refused}");

    let mut without_nouns = settings.clone();
    (without_nouns.local.enabled, without_nouns.local.noun_count) = (true, 10_000);
    let refused = workspace.train(&without_nouns, false).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().contains("local.noun_count: 10000"), "{refused}");

    settings.shape.max_length = 4;
    settings.generation.max_new_tokens = 3;
    let refused = workspace.train(&settings, false).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().contains("allowed: captions of at most 4 tokens"), "{refused}");
}

#[test]
fn a_folder_with_other_files_is_refused() {
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.out()).unwrap();
    std::fs::write(workspace.out().join("thesis.tex"), "years of work").unwrap();
    let refused = workspace.train(&settings(), false).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().starts_with("--out holds files"), "{refused}");
}

#[test]
fn the_bundles_in_the_repository_load() {
    for name in ["random", "tiny"] {
        let bundle = Bundle::open(&kit::root("models").join(name)).unwrap();
        assert_eq!(bundle.config.name, format!("fusioncap-{name}"));
        load(bundle, 1);
    }
}
