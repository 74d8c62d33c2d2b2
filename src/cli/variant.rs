//! `fusioncap variant`: writes a bundle in less precise arithmetic and measures the difference.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::images::{self, DecodePrefetcher};
use super::{evaluate, output};
use crate::bundle::Bundle;
use crate::bundle::variants::Reduced;
use crate::config::{DecodeMode, Model, Runtime};
use crate::engine::{Caption, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::evaluate::Metric;
use crate::evaluate::bootstrap::Bootstrap;
use crate::onnx::variant;

/// Images per batch in the measurement.
const BATCH: usize = 8;
/// How often each model captions the images; the fastest round counts.
const ROUNDS: usize = 4;
/// Text in the card of a variant that was not measured.
const UNMEASURED: &str =
    "The difference was not measured: `--images` names photos to measure it on.";

#[derive(Debug, Args)]
pub struct VariantArgs {
    /// Directory of the model bundle; the variant is written to variants/PRECISION in it
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Arithmetic of the variant
    #[arg(long, value_enum)]
    precision: Precision,
    /// Photos to caption with both models: the difference is printed and written into the model card
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Reference captions of the photos in COCO's layout, to compare CIDEr-D
    #[arg(long, value_name = "FILE", requires = "images")]
    references: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    /// For GPUs: 16-bit floats
    Fp16,
    /// For CPUs: 8-bit matrix products
    Int8,
}

/// # Errors
/// `ErrorKind::Config` for wrong arguments; others as they happen.
pub fn run(args: VariantArgs) -> Result<()> {
    let precision = match args.precision {
        Precision::Fp16 => Reduced::Fp16,
        Precision::Int8 => Reduced::Int8,
    };
    let path = args.model.display().to_string();
    Model { path, ..Model::default() }.directory()?;
    let origin = Bundle::open(&args.model)?;
    let mut made = variant::write(&origin, precision, UNMEASURED)?;
    let mut report = sizes(&origin, &made)?;
    if let Some(images) = &args.images {
        let measured = measure(&origin, &made, images, args.references.as_deref())?;
        report.push_str(&measured);
        made = variant::describe(&origin, precision, &card(&report))?;
    }
    output::print(&format!("wrote {}: {}\n{report}", made.dir().display(), made.digest()))
}

/// Formats the report as a part of the model card.
fn card(report: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lines: String = report.lines().map(|line| format!("- {line}\n")).collect();
    format!("Measured when the variant was made, on the CPU ({cores} cores):\n\n{lines}")
}

fn sizes(origin: &Bundle, made: &Bundle) -> Result<String> {
    let bytes = |bundle: &Bundle| -> Result<u64> {
        let files = bundle.manifest()?.files;
        let graphs = files.iter().filter(|(name, _)| name.starts_with("onnx/"));
        Ok(graphs.map(|(_, entry)| entry.bytes).sum())
    };
    let (before, after) = (bytes(origin)?, bytes(made)?);
    Ok(format!(
        "graphs: {before} bytes before, {after} after, {:.2} times as many\n",
        after as f64 / before.max(1) as f64
    ))
}

/// Captions the photos in `folder` with both models and compares captions and speed.
fn measure(
    origin: &Bundle,
    made: &Bundle,
    folder: &Path,
    references: Option<&Path>,
) -> Result<String> {
    let photos = decode(origin, folder)?;
    let (mut before, mut after) = (Captioner::load(origin)?, Captioner::load(made)?);
    // In turns, so that other load on the machine meets both.
    for _ in 0..ROUNDS {
        before.caption(&photos)?;
        after.caption(&photos)?;
    }
    let pairs = || before.captions.iter().zip(&after.captions);
    let equal = pairs().filter(|(left, right)| left.text == right.text).count();
    let shift: f32 = pairs().map(|(left, right)| (left.score - right.score).abs()).sum();
    let mut report = format!(
        "captions: {equal} of {count} equal; scores differ by {shift:.4} in the mean\n\
         speed: {slow:.1} images/s before, {fast:.1} after, {ratio:.2} times as many\n",
        count = photos.len(),
        shift = shift / photos.len() as f32,
        slow = before.speed(),
        fast = after.speed(),
        ratio = after.speed() / before.speed(),
    );
    if let Some(references) = references {
        let scores = |bundle: &Bundle| evaluate::measure(bundle.dir(), folder, references);
        let (before, after) = (scores(origin)?, scores(made)?);
        let all: Vec<usize> = (0..before.len()).collect();
        let bootstrap = Bootstrap { resamples: 1000, seed: 1 };
        let difference = after.compare(&before, Metric::CiderD, &bootstrap);
        // Writing to a string can't fail.
        let _ = writeln!(
            report,
            "CIDEr-D: {:.1} before, {:.1} after; the difference is {:+.1} ({:+.1} to {:+.1})",
            100.0 * before.value(Metric::CiderD, &all),
            100.0 * after.value(Metric::CiderD, &all),
            100.0 * difference.estimate.value,
            100.0 * difference.estimate.low,
            100.0 * difference.estimate.high,
        );
    }
    Ok(report)
}

/// Decodes the photos in `folder` to the bundle's input size; leaves out photos that can't be read.
fn decode(bundle: &Bundle, folder: &Path) -> Result<Vec<Vec<u8>>> {
    let preprocessor = crate::image::Preprocessor::new(bundle.preprocessor.clone())?;
    let preprocessor = preprocessor.in_mode(DecodeMode::Fast);
    let decoded = images::runtime()?.block_on(async {
        let found = images::find(&[folder.display().to_string()], None).await?;
        let count = found.len();
        Ok::<_, Error>(
            DecodePrefetcher::new(found, preprocessor, None, 2 * BATCH).next(count).await,
        )
    })?;
    let mut photos = Vec::new();
    for (name, photo) in decoded {
        match photo {
            Ok(photo) => photos.push(photo.rgb),
            Err(error) => {
                tracing::warn!(name, error = error.chain(), "a photo can't be read and is left out")
            }
        }
    }
    if photos.is_empty() {
        return Err(Error::new(ErrorKind::Io, "--images has no readable photo")
            .with_context("path", folder.display()));
    }
    Ok(photos)
}

/// A model with its captions of the photos.
struct Captioner {
    engine: Engine,
    captions: Vec<Caption>,
    /// Time of the fastest round.
    shortest: Duration,
}

impl Captioner {
    fn load(bundle: &Bundle) -> Result<Self> {
        let model = Model::default();
        let engine = Engine::load(bundle.clone(), &Runtime::default(), &model, BATCH)?;
        Ok(Self { engine, captions: Vec::new(), shortest: Duration::MAX })
    }

    fn caption(&mut self, photos: &[Vec<u8>]) -> Result<()> {
        self.captions.clear();
        let start = Instant::now();
        for batch in photos.chunks(BATCH) {
            let views: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
            self.captions.extend(self.engine.caption(&views)?);
        }
        self.shortest = self.shortest.min(start.elapsed());
        Ok(())
    }

    /// Returns the images per second.
    fn speed(&self) -> f64 {
        self.captions.len() as f64 / self.shortest.as_secs_f64()
    }
}
