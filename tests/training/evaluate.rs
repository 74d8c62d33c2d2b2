//! Metrics against those of pycocoevalcap, and `fusioncap evaluate` as a user meets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use fusioncap::bundle::{self, Bundle, CONFIG, TEXT, TEXT_TOKENIZER, TOKENIZER};
use fusioncap::config::Runtime;
use fusioncap::evaluate::bootstrap::Bootstrap;
use fusioncap::evaluate::clipscore::clip_scores;
use fusioncap::evaluate::{Metric, Scores, tokens};
use fusioncap::text_tower::TextTower;
use kit::{root, stderr, stdout};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The output of `tests/fixtures/evaluate/make.py`.
#[derive(Deserialize)]
struct Fixture {
    images: Vec<Image>,
    bleu: [f64; 4],
    rouge_l: f64,
    cider_d: f64,
    tricky: Vec<Tricky>,
}

#[derive(Deserialize)]
struct Image {
    caption: String,
    references: Vec<String>,
    caption_words: String,
    reference_words: Vec<String>,
    bleu: [f64; 4],
    rouge_l: f64,
    cider_d: f64,
}

#[derive(Deserialize)]
struct Tricky {
    text: String,
    words: String,
}

fn fixture() -> Fixture {
    let path = root("tests/fixtures/evaluate/scores.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn assert_equal(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
}

#[test]
fn words_are_those_of_the_reference_tokenizer() {
    let fixture = fixture();
    for Tricky { text, words } in &fixture.tricky {
        assert_eq!(&tokens::words(text).join(" "), words);
    }
    for image in &fixture.images {
        assert_eq!(tokens::words(&image.caption).join(" "), image.caption_words);
        let own: Vec<String> =
            image.references.iter().map(|text| tokens::words(text).join(" ")).collect();
        assert_eq!(own, image.reference_words);
    }
}

#[test]
fn metrics_equal_pycocoevalcaps() {
    let fixture = fixture();
    let words = |text: &String| text.split(' ').map(String::from).collect::<Vec<_>>();
    let captions: Vec<_> = fixture.images.iter().map(|image| words(&image.caption_words)).collect();
    let references: Vec<Vec<_>> = fixture
        .images
        .iter()
        .map(|image| image.reference_words.iter().map(words).collect())
        .collect();
    let scores = Scores::from_words(&captions, &references);
    let bleu = [Metric::Bleu1, Metric::Bleu2, Metric::Bleu3, Metric::Bleu4];
    let all: Vec<usize> = (0..scores.len()).collect();
    for (metric, expected) in bleu.iter().zip(fixture.bleu) {
        assert_equal(scores.value(*metric, &all), expected);
    }
    assert_equal(scores.value(Metric::RougeL, &all), fixture.rouge_l);
    assert_equal(scores.value(Metric::CiderD, &all), fixture.cider_d);
    for (index, image) in fixture.images.iter().enumerate() {
        for (metric, expected) in bleu.iter().zip(image.bleu) {
            assert_equal(scores.value(*metric, &[index]), expected);
        }
        assert_equal(scores.value(Metric::RougeL, &[index]), image.rouge_l);
        assert_equal(scores.value(Metric::CiderD, &[index]), image.cider_d);
    }
}

#[test]
fn a_figure_lies_in_its_interval() {
    let fixture = fixture();
    let captions: Vec<String> = fixture.images.iter().map(|image| image.caption.clone()).collect();
    let references: Vec<Vec<String>> =
        fixture.images.iter().map(|image| image.references.clone()).collect();
    let scores = Scores::new(&captions, &references);
    let bootstrap = Bootstrap { resamples: 500, seed: 1 };
    assert_eq!(scores.metrics().len(), 6, "no text tower, no CLIPScore");
    for metric in scores.metrics() {
        let estimate = scores.estimate(metric, &bootstrap);
        assert!(estimate.low < estimate.value && estimate.value < estimate.high, "{estimate:?}");
    }
    // Another image's caption for every image: worse beyond chance.
    let mut wrong = captions.clone();
    wrong.rotate_left(1);
    let worse = Scores::new(&wrong, &references);
    let difference = scores.compare(&worse, Metric::CiderD, &bootstrap);
    assert!(difference.estimate.low > 0.0 && difference.p < 0.01, "{difference:?}");
    assert_eq!(scores.compare(&scores, Metric::CiderD, &bootstrap).estimate.value, 0.0);
}

#[test]
fn clip_scores_are_those_of_the_joint_space() {
    let folder = tempfile::tempdir().unwrap();
    fusioncap::encoder::random::build(folder.path(), 7).unwrap();
    let mut tower = TextTower::open(folder.path(), 64, &Runtime::default()).unwrap();
    let texts = ["a cat", "a dog", "two cats"].map(String::from);
    let prompts = texts.clone().map(|text| format!("A photo depicts {text}"));
    let rows = tower.embed(&prompts).unwrap();
    let rows: Vec<&[f32]> = rows.chunks(rows.len() / 3).collect();
    let cosine = |left: usize, right: usize| -> f64 {
        rows[left].iter().zip(rows[right]).map(|(left, right)| f64::from(left * right)).sum()
    };
    // The image looks like the second text; it is described by the first.
    let references = [vec![texts[1].clone(), texts[2].clone()]];
    let scores = clip_scores(&mut tower, &texts[..1], &rows[1..2], &references).unwrap();
    let clip = 2.5 * cosine(0, 1).max(0.0);
    let nearest = cosine(0, 1).max(cosine(0, 2)).max(0.0);
    assert_equal(scores.clip_score[0], clip);
    assert_equal(scores.ref_clip_score[0], 2.0 * clip * nearest / (clip + nearest));
    // A text is nearest to itself.
    let same = clip_scores(&mut tower, &texts[..1], &rows[..1], &[vec![texts[0].clone()]]).unwrap();
    assert!((same.clip_score[0] - 2.5).abs() < 1e-4, "{same:?}");
}

/// A folder with references of three sample photos.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        workshop.write("references.json", &workshop.references());
        workshop
    }

    fn references(&self) -> Value {
        let images = ["cat.jpg", "coffee.jpg", "rocket.jpg"];
        let captions = ["a cat on a bench", "a cup of coffee on a table", "a rocket lifts off"];
        let listed = images.iter().zip(1..);
        let written = captions.iter().zip(1..);
        json!({
            "images": listed.map(|(name, id)| json!({"id": id, "file_name": name})).collect::<Vec<_>>(),
            "annotations":
                written.map(|(text, id)| json!({"image_id": id, "caption": text})).collect::<Vec<_>>(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, value: &Value) -> PathBuf {
        fs::write(self.path(name), value.to_string()).unwrap();
        self.path(name)
    }

    fn evaluate(&self, references: &Path, more: &[&str]) -> Output {
        kit::fusioncap(&["evaluate", "--resamples", "50", "--references"])
            .current_dir(root(""))
            .arg(references)
            .args(more)
            .output()
            .unwrap()
    }

    fn with_model(&self, references: &Path, more: &[&str]) -> Output {
        let model = ["--model", "models/random", "--images", "samples"];
        self.evaluate(references, &[&model, more].concat())
    }
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output)
}

fn refused(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

#[test]
fn a_bundle_is_measured() {
    let workshop = Workshop::new();
    let (references, results) = (workshop.path("references.json"), workshop.path("results.json"));
    let page = workshop.path("report.html");
    let run = [
        "--results",
        results.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
        "--format",
        "json",
    ];
    let found: Value =
        serde_json::from_str(&succeeded(&workshop.with_model(&references, &run))).unwrap();
    assert_eq!(found["images"], 3);
    let cider = &found["metrics"]["CIDEr-D"];
    assert!(cider["low"].as_f64() <= cider["value"].as_f64(), "{found}");

    // The captions it wrote score the same without the model.
    let captions = ["--captions", results.to_str().unwrap(), "--format", "json"];
    let again: Value =
        serde_json::from_str(&succeeded(&workshop.evaluate(&references, &captions))).unwrap();
    assert_eq!(again, found);

    let html = fs::read_to_string(page).unwrap();
    assert_eq!(html.matches("data:image/jpeg;base64,").count(), 3);
    assert!(html.contains("<li>a rocket lifts off</li>") && !html.contains("http"), "{html}");

    let table = succeeded(&workshop.with_model(&references, &[]));
    assert!(table.starts_with("3 images\nBLEU-1 "), "{table}");
}

#[test]
fn a_bundle_is_no_better_than_itself() {
    let workshop = Workshop::new();
    let run =
        ["--compare", "models/random", "models/random", "--images", "samples", "--format", "json"];
    let output = workshop.evaluate(&workshop.path("references.json"), &run);
    let found: Value = serde_json::from_str(&succeeded(&output)).unwrap();
    let cider = &found["metrics"]["CIDEr-D"];
    assert_eq!(
        (cider["difference"]["value"].as_f64(), cider["p"].as_f64()),
        (Some(0.0), Some(1.0))
    );
}

#[test]
fn the_columns_of_a_comparison_are_aligned() {
    let workshop = Workshop::new();
    let run = ["--compare", "models/random", "models/random", "--images", "samples"];
    let output = workshop.evaluate(&workshop.path("references.json"), &run);
    let table = succeeded(&output);
    assert!(!stderr(&output).contains("CLIPScore"), "{}", stderr(&output));
    let lines: Vec<&str> = table.lines().collect();
    let (header, row) = (lines[0], lines[1]);
    assert!(header.starts_with("3 images ") && row.starts_with("BLEU-1 "), "{table}");
    for column in ["first", "second"] {
        let end = header.find(column).unwrap() + column.len();
        let (until, after) = row.split_at(end);
        assert!(until.ends_with(|last: char| last.is_ascii_digit()), "{column}\n{table}");
        assert!(after.starts_with(' '), "{column}\n{table}");
    }
    let difference = &row[header.find("difference").unwrap()..];
    assert!(difference.starts_with("   0.0  (0.0 to 0.0)  p = "), "{table}");
}

/// `models/random` with the text tower of a random encoder.
fn with_text_tower(folder: &Path) {
    let encoder = tempfile::tempdir().unwrap();
    fusioncap::encoder::random::build(encoder.path(), 7).unwrap();
    let origin = Bundle::open(&root("models/random")).unwrap();
    for name in origin.manifest().unwrap().files.into_keys() {
        let target = folder.join(&name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(origin.path(&name), target).unwrap();
    }
    fs::copy(encoder.path().join(TEXT), folder.join(TEXT)).unwrap();
    let tokenizer = folder.join(TEXT_TOKENIZER);
    fs::create_dir_all(tokenizer.parent().unwrap()).unwrap();
    fs::copy(encoder.path().join(TOKENIZER), tokenizer).unwrap();
    let path = folder.join(CONFIG);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["text_max_length"] = json!(64);
    fs::write(path, config.to_string()).unwrap();
    bundle::seal(folder).unwrap();
}

#[test]
fn a_bundle_without_a_text_tower_is_named_where_clip_score_is_left_out() {
    let workshop = Workshop::new();
    let rich = workshop.path("rich");
    with_text_tower(&rich);
    let rich = rich.to_str().unwrap();
    for pair in [["models/random", rich], [rich, "models/random"]] {
        let run = [&["--compare"], &pair[..], &["--images", "samples"]].concat();
        let output = workshop.evaluate(&workshop.path("references.json"), &run);
        assert!(!succeeded(&output).contains("CLIPScore"), "{}", stdout(&output));
        let warning = "warning: CLIPScore is left out: models/random has no text tower";
        assert!(stderr(&output).contains(warning), "{}", stderr(&output));
    }
    let both = workshop.evaluate(
        &workshop.path("references.json"),
        &["--compare", rich, rich, "--images", "samples"],
    );
    assert!(succeeded(&both).contains("\nRefCLIPScore "), "{}", stdout(&both));
    assert!(!stderr(&both).contains("CLIPScore"), "{}", stderr(&both));
}

#[test]
fn a_results_file_needs_no_photos_and_no_model() {
    let workshop = Workshop::new();
    let results = workshop.write("results.json", &json!([{"image_id": 1, "caption": "a cat"}]));
    let captions = ["--captions", results.to_str().unwrap()];
    for ignored in [["--images", "samples"], ["--beams", "2"], ["--batch-size", "4"]] {
        let run = [captions, ignored].concat();
        let output = workshop.evaluate(&workshop.path("references.json"), &run);
        let error = refused(&output);
        assert!(error.contains("--captions") && stderr(&output).contains(ignored[0]), "{error}");
    }
    let run = ["--compare", "a", "b", "--compare", "c", "d", "--images", "samples"];
    let error = refused(&workshop.evaluate(&workshop.path("references.json"), &run));
    assert!(error.contains("allowed: --captions, or --images with"), "{error}");
}

#[test]
fn what_does_not_go_together_is_said_or_refused() {
    let workshop = Workshop::new();
    let mut references = workshop.references();
    references["images"][2]["file_name"] = json!("../Cargo.toml");
    references["annotations"][1]["caption"] = json!("  ");
    let path = workshop.write("partly.json", &references);
    let output = workshop.with_model(&path, &[]);
    assert!(succeeded(&output).starts_with("1 images"));
    let warnings = stderr(&output);
    assert!(warnings.contains("1 images have no references"), "{warnings}");
    assert!(warnings.contains("1 of 2 referenced photos are missing and left out: ../Cargo.toml"));

    for (change, reason) in [
        (
            json!({"images": [{"id": 1, "file_name": "no.jpg"}],
            "annotations": [{"image_id": 1, "caption": "x"}]}),
            "none of the referenced photos",
        ),
        (
            json!({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}],
            "annotations": []}),
            "duplicate image id (path: ",
        ),
        (
            json!({"images": [], "annotations": [{"image_id": 9, "caption": "x"}]}),
            "an image that is not listed",
        ),
        (
            json!({"images": [{"id": 1, "file_name": "cat.jpg"}], "annotations": []}),
            "--references contains no captions",
        ),
        (json!([]), "--references can't be used"),
    ] {
        let error = refused(&workshop.with_model(&workshop.write("wrong.json", &change), &[]));
        assert!(error.contains(reason), "{error}");
    }
    let missing = refused(&workshop.with_model(&workshop.path("nowhere.json"), &[]));
    assert!(missing.contains("--references can't be used"), "{missing}");
    let twice = json!([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]);
    let captions = workshop.write("twice.json", &twice);
    let run = ["--captions", captions.to_str().unwrap()];
    let error = refused(&workshop.evaluate(&workshop.path("references.json"), &run));
    assert!(error.contains("--captions: duplicate image id"), "{error}");
}
