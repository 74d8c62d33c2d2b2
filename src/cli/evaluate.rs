//! `fusioncap evaluate`: scores a bundle's captions against references, with intervals.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::images::{self, DecodePrefetcher, Image};
use super::output;
use crate::bundle::{Bundle, write_json};
use crate::config::{Model, Runtime};
use crate::engine::{Caption, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::evaluate::bootstrap::{Bootstrap, Difference, Estimate};
use crate::evaluate::clipscore::{ClipScores, clip_scores};
use crate::evaluate::coco::{self, ImageCaption, ReferencedImage};
use crate::evaluate::report::{self, Page, Photo};
use crate::evaluate::{Metric, Scores};
use crate::progress::Progress;
use crate::text_tower::TextTower;

/// Missing photos that a warning names.
const NAMED: usize = 3;
/// Images per batch by default.
const BATCH_SIZE: u16 = 8;

#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Model bundle: a directory
    #[arg(long, value_name = "DIR", required_unless_present_any = ["captions", "compare"])]
    model: Option<PathBuf>,
    /// Folder of the photos that the references name
    #[arg(long, value_name = "DIR", required_unless_present = "captions")]
    images: Option<PathBuf>,
    /// Reference captions in COCO's layout: images (id, file_name), annotations (image_id, caption)
    #[arg(long, value_name = "FILE")]
    references: PathBuf,
    /// Score the captions of a COCO results file instead of running a model
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "compare", "html", "images", "beams", "batch_size"])]
    captions: Option<PathBuf>,
    /// Compare two bundles, the second against the first
    #[arg(long, value_name = "DIR", num_args = 2, conflicts_with = "model")]
    compare: Vec<PathBuf>,
    /// Write the captions as a COCO results file
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    results: Option<PathBuf>,
    /// Write a page with photos, captions, references and the attention of the local queries
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    html: Option<PathBuf>,
    /// Table or one JSON object
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = BATCH_SIZE, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_size: u16,
    /// Beam width [default: the bundle's]
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// Bootstrap resamples for the 95 % intervals
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    resamples: u32,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// The captions to score.
enum Task<'a> {
    /// Those of a results file.
    Results(&'a Path),
    /// Those of one bundle.
    Bundle(&'a Path, Photos<'a>),
    /// Those of two bundles.
    Bundles([&'a Path; 2], Photos<'a>),
}

/// The photos, and how they are captioned.
struct Photos<'a> {
    folder: &'a Path,
    batch_size: u16,
    /// The bundle's without.
    beams: Option<usize>,
    /// For the page.
    keep_attention: bool,
}

impl EvaluateArgs {
    fn task(&self) -> Result<Task<'_>> {
        if let Some(path) = &self.captions {
            return Ok(Task::Results(path));
        }
        let photos = self.images.as_deref().map(|folder| Photos {
            folder,
            batch_size: self.batch_size,
            beams: self.beams,
            keep_attention: self.html.is_some(),
        });
        match (photos, &self.model, self.compare.as_slice()) {
            (Some(photos), Some(model), []) => Ok(Task::Bundle(model, photos)),
            (Some(photos), None, [first, second]) => Ok(Task::Bundles([first, second], photos)),
            _ => Err(Error::new(ErrorKind::Config, "the captions to score are not clear")
                .with_context("allowed", "--captions, or --images with --model or one --compare")),
        }
    }
}

/// Captions the photos in `folder` with the bundle `model` and scores the captions, without output
/// on stdout.
///
/// # Errors
/// As [`run`].
#[cfg(feature = "train")]
pub fn measure(model: &Path, folder: &Path, references: &Path) -> Result<Scores> {
    let photos = Photos { folder, batch_size: BATCH_SIZE, beams: None, keep_attention: false };
    let images = present(folder, coco::read_references(references)?.images)?;
    Ok(scores(&captioned(model, &photos, images)?))
}

/// # Errors
/// `ErrorKind::Config` for wrong arguments, such as references and photos that do not match; others as
/// they happen.
pub fn run(args: EvaluateArgs) -> Result<()> {
    let bootstrap = Bootstrap { resamples: args.resamples as usize, seed: args.seed };
    let task = args.task()?;
    let found = coco::read_references(&args.references)?;
    if found.without_references > 0 {
        warn(&format!("{} images have no references and are left out", found.without_references));
    }
    match task {
        Task::Results(path) => score(&args, &from_results(path, found.images)?, None, &bootstrap),
        Task::Bundle(model, photos) => {
            let images = present(photos.folder, found.images)?;
            let answers = captioned(model, &photos, images)?;
            score(&args, &answers, Some(photos.folder), &bootstrap)
        }
        Task::Bundles([first, second], photos) => {
            let images = present(photos.folder, found.images)?;
            let before = captioned(first, &photos, images)?;
            let images = before.iter().map(|photo| photo.image.clone()).collect();
            let after = captioned(second, &photos, images)?;
            compare(args.format, [(first, &before), (second, &after)], &bootstrap)
        }
    }
}

/// A photo with its caption.
#[derive(Clone)]
struct Answered {
    image: ReferencedImage,
    caption: Caption,
    /// CLIPScore and RefCLIPScore, if the bundle carries the text tower.
    clip: Option<(f64, f64)>,
}

/// Reads the captions of a results file; leaves out images without one, with a warning.
fn from_results(path: &Path, images: Vec<ReferencedImage>) -> Result<Vec<Answered>> {
    let mut captions = coco::read_results(path)?;
    let listed = images.len();
    let answered = |image: ReferencedImage| {
        let text = captions.remove(&image.id)?;
        let caption = Caption { text, score: 0.0, embedding: Vec::new(), attention: Vec::new() };
        Some(Answered { image, caption, clip: None })
    };
    let answers: Vec<Answered> = images.into_iter().filter_map(answered).collect();
    if answers.is_empty() {
        return Err(Error::new(
            ErrorKind::Config,
            "--captions has no caption of a referenced image",
        )
        .with_context("path", path.display()));
    }
    if answers.len() < listed {
        warn(&format!(
            "{} referenced images have no caption and are left out",
            listed - answers.len()
        ));
    }
    Ok(answers)
}

/// Returns the images whose photo is in `folder`; leaves out the others, with a warning.
fn present(folder: &Path, images: Vec<ReferencedImage>) -> Result<Vec<ReferencedImage>> {
    let listed = images.len();
    let (there, missing): (Vec<_>, Vec<_>) =
        images.into_iter().partition(|image| photo(folder, image).is_file());
    if there.is_empty() {
        return Err(Error::new(ErrorKind::Config, "--images has none of the referenced photos")
            .with_context("path", folder.display())
            .with_context("photos", listed));
    }
    if !missing.is_empty() {
        let names: Vec<&str> =
            missing.iter().take(NAMED).map(|image| image.file_name.as_str()).collect();
        let more = if missing.len() > NAMED { ", ..." } else { "" };
        warn(&format!(
            "{} of {listed} referenced photos are missing and left out: {}{more}",
            missing.len(),
            names.join(", ")
        ));
    }
    Ok(there)
}

/// Returns the path of a photo; empty if its name leads out of the folder.
fn photo(folder: &Path, image: &ReferencedImage) -> PathBuf {
    let name = Path::new(&image.file_name);
    let inside = name.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if inside { folder.join(name) } else { PathBuf::new() }
}

/// Captions `images` with the bundle `model`; leaves out photos that can't be read, with a warning.
fn captioned(
    model: &Path,
    photos: &Photos<'_>,
    images: Vec<ReferencedImage>,
) -> Result<Vec<Answered>> {
    let settings =
        Model { path: model.display().to_string(), num_beams: photos.beams, ..Model::default() };
    settings.directory()?;
    let size = usize::from(photos.batch_size);
    let mut engine = Engine::load(Bundle::open(model)?, &Runtime::default(), &settings, size)?;
    if photos.keep_attention {
        engine.keep_attention();
    }
    let files = images.iter().map(|image| Image::File(photo(photos.folder, image))).collect();
    let progress = Progress::new("captioning", "images", images.len() as u64);
    let mut by_name: HashMap<String, Caption> = HashMap::new();
    images::runtime()?.block_on(async {
        let mut prefetcher =
            DecodePrefetcher::new(files, engine.preprocessor().clone(), None, 2 * size);
        loop {
            let batch = prefetcher.next(size).await;
            if batch.is_empty() {
                return Ok::<(), Error>(());
            }
            progress.advance(batch.len() as u64);
            for (name, outcome) in images::caption(&mut engine, batch)? {
                match outcome {
                    Ok(caption) => drop(by_name.insert(name, caption)),
                    Err(error) => progress.note(&format!("warning: {name}: {}", error.chain())),
                }
            }
        }
    })?;
    progress.finish();
    let answered = |image: ReferencedImage| {
        let caption = by_name.get(&photo(photos.folder, &image).display().to_string())?.clone();
        Some(Answered { image, caption, clip: None })
    };
    let mut answers: Vec<Answered> = images.into_iter().filter_map(answered).collect();
    if answers.is_empty() {
        return Err(Error::new(ErrorKind::Io, "no photo has a caption"));
    }
    if let Some(mut tower) = TextTower::open_bundle(engine.bundle(), &Runtime::default())? {
        add_clip_scores(&mut answers, &mut tower)?;
    }
    Ok(answers)
}

/// Adds CLIPScore and RefCLIPScore.
fn add_clip_scores(answers: &mut [Answered], tower: &mut TextTower) -> Result<()> {
    let (captions, references) = texts(answers);
    let images: Vec<&[f32]> =
        answers.iter().map(|answer| answer.caption.embedding.as_slice()).collect();
    let ClipScores { clip_score, ref_clip_score } =
        clip_scores(tower, &captions, &images, &references)?;
    for (answer, scores) in answers.iter_mut().zip(clip_score.into_iter().zip(ref_clip_score)) {
        answer.clip = Some(scores);
    }
    Ok(())
}

fn texts(photos: &[Answered]) -> (Vec<String>, Vec<Vec<String>>) {
    photos.iter().map(|photo| (photo.caption.text.clone(), photo.image.references.clone())).unzip()
}

fn scores(photos: &[Answered]) -> Scores {
    let (captions, references) = texts(photos);
    let scores = Scores::new(&captions, &references);
    match photos.iter().map(|photo| photo.clip).collect::<Option<Vec<_>>>() {
        Some(clip) => {
            let (clip_score, ref_clip_score) = clip.into_iter().unzip();
            scores.with_clip(ClipScores { clip_score, ref_clip_score })
        }
        None => scores,
    }
}

/// Scores the captions; `folder` has the photos, if there are any.
fn score(
    args: &EvaluateArgs,
    photos: &[Answered],
    folder: Option<&Path>,
    bootstrap: &Bootstrap,
) -> Result<()> {
    let scores = scores(photos);
    if let Some(path) = &args.results {
        let results: Vec<ImageCaption> = photos
            .iter()
            .map(|photo| ImageCaption {
                image_id: photo.image.id,
                caption: photo.caption.text.clone(),
            })
            .collect();
        write_json(path, &results)?;
    }
    let metrics = scores.metrics().into_iter();
    let estimates: Vec<(Metric, Estimate)> =
        metrics.map(|metric| (metric, scores.estimate(metric, bootstrap))).collect();
    if let (Some(path), Some(folder)) = (&args.html, folder) {
        page(folder, photos, &scores, &estimates, path)?;
    }
    if args.format == Format::Json {
        let figures: BTreeMap<String, serde_json::Value> = estimates
            .iter()
            .map(|(metric, estimate)| (metric.to_string(), json(estimate)))
            .collect();
        return output::print_json(
            &serde_json::json!({ "images": photos.len(), "metrics": figures }),
        );
    }
    let mut table = format!("{} images\n", photos.len());
    for (metric, estimate) in &estimates {
        table.push_str(&format!("{metric:12} {}\n", text(estimate)));
    }
    output::print(&table)
}

/// Compares the captions of two bundles.
fn compare(
    format: Format,
    bundles: [(&Path, &Vec<Answered>); 2],
    bootstrap: &Bootstrap,
) -> Result<()> {
    let [(first_bundle, first), (second_bundle, second)] = bundles;
    // A photo that one bundle could not caption counts for neither.
    let ids: HashSet<u64> = second.iter().map(|photo| photo.image.id).collect();
    let both: Vec<Answered> =
        first.iter().filter(|photo| ids.contains(&photo.image.id)).cloned().collect();
    let (before, after) = (scores(&both), scores(second));
    let (known, compared) = (after.metrics(), before.metrics());
    if known.len() != compared.len() {
        let lacking = if known.len() < compared.len() { second_bundle } else { first_bundle };
        warn(&format!("CLIPScore is left out: {} has no text tower", lacking.display()));
    }
    let shared = compared.into_iter().filter(|metric| known.contains(metric));
    let rows: Vec<(Metric, f64, f64, Difference)> = shared
        .map(|metric| {
            let whole: Vec<usize> = (0..before.len()).collect();
            let values = (before.value(metric, &whole), after.value(metric, &whole));
            (metric, values.0, values.1, after.compare(&before, metric, bootstrap))
        })
        .collect();
    if format == Format::Json {
        let figures: BTreeMap<String, serde_json::Value> = rows
            .iter()
            .map(|(metric, first, second, difference)| {
                let figure = serde_json::json!({
                    "first": 100.0 * first, "second": 100.0 * second,
                    "difference": json(&difference.estimate), "p": difference.p,
                });
                (metric.to_string(), figure)
            })
            .collect();
        return output::print_json(
            &serde_json::json!({ "images": both.len(), "metrics": figures }),
        );
    }
    let images = format!("{} images", both.len());
    let mut table = format!("{images:24} {:>6} {:>7}  difference\n", "first", "second");
    for (metric, first, second, difference) in &rows {
        table.push_str(&format!(
            "{metric:24} {:6.1} {:7.1}  {}  p = {:.3}\n",
            100.0 * first,
            100.0 * second,
            text(&difference.estimate),
            difference.p
        ));
    }
    output::print(&table)
}

fn text(estimate: &Estimate) -> String {
    let Estimate { value, low, high } = estimate;
    format!("{:6.1}  ({:.1} to {:.1})", 100.0 * value, 100.0 * low, 100.0 * high)
}

fn json(estimate: &Estimate) -> serde_json::Value {
    let Estimate { value, low, high } = estimate;
    serde_json::json!({ "value": 100.0 * value, "low": 100.0 * low, "high": 100.0 * high })
}

/// Writes the page, with the worst caption first.
fn page(
    folder: &Path,
    photos: &[Answered],
    scores: &Scores,
    estimates: &[(Metric, Estimate)],
    path: &Path,
) -> Result<()> {
    let mut shown: Vec<Photo<'_>> = photos
        .iter()
        .zip(scores.cider_d())
        .map(|(answered, cider_d)| Photo {
            path: photo(folder, &answered.image),
            caption: &answered.caption,
            references: &answered.image.references,
            cider_d: *cider_d,
        })
        .collect();
    shown.sort_by(|left, right| left.cider_d.total_cmp(&right.cider_d));
    let figures = estimates
        .iter()
        .map(|(metric, estimate)| format!("{metric} {}", text(estimate).trim()))
        .collect();
    let html = report::render(&Page { figures, photos: shown })?;
    fs::write(path, html).map_err(|error| {
        Error::new(ErrorKind::Io, "can't write the page")
            .with_context("path", path.display())
            .with_source(error)
    })
}

fn warn(line: &str) {
    // Nobody reads a closed stderr.
    let _ = writeln!(std::io::stderr(), "warning: {line}");
}
