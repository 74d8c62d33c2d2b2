//! `fusioncap ablate`: measures the effect of each part of FusionCap, in one table.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{evaluate, output, train};
use crate::ablate::proxy::Recipe;
use crate::ablate::{Method, Study, estimate, spread};
use crate::config::Runtime;
use crate::error::Result;
use crate::evaluate::bootstrap::Bootstrap;
use crate::evaluate::{Metric, Scores};
use crate::train::Request;
use crate::train::device::DeviceKind;
use crate::train::settings::Settings;

#[derive(Debug, Args)]
pub struct AblateArgs {
    /// Encoder directory (made by `fusioncap encoder` or `fusioncap clip`)
    #[arg(long, value_name = "DIR")]
    encoder: PathBuf,
    /// Captions in the order of their images, about five per image; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    corpus: Vec<PathBuf>,
    /// TOML file with hyper-parameters for every training, which override the defaults
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Device for the training
    #[arg(long, value_enum, default_value_t)]
    device: DeviceKind,
    /// Directory for the bundles; existing ones of the same study are not trained again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Trainings per method
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Images at the end of the corpus to hold out; one caption stands for each
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    proxies: u32,
    /// Standard deviation of the noise on the proxies' embeddings: the encoder's modality gap
    #[arg(long, value_name = "SIGMA", default_value_t = 0.06)]
    proxy_sigma: f32,
    /// Folder of photos to measure on as well
    #[arg(long, value_name = "DIR", requires = "references")]
    images: Option<PathBuf>,
    /// Reference captions of the photos in COCO's layout
    #[arg(long, value_name = "FILE", requires = "images")]
    references: Option<PathBuf>,
}

/// # Errors
/// `ErrorKind::Config` for wrong arguments; others as they happen.
pub fn run(args: AblateArgs) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    train::listen(Arc::clone(&stop))?;
    let study = Study {
        request: Request {
            encoder: args.encoder,
            corpora: args.corpus,
            cache: args.out.join("cache"),
            checkpoint: args.out.join("checkpoint"),
            out: args.out,
            settings: Settings::load(args.settings.as_deref())?,
            from: None,
            notes: None,
            text_tower: false,
            runtime: Runtime::default(),
            device: args.device,
            resume: false,
            stop,
        },
        seeds: args.seeds,
        proxies: args.proxies as usize,
        recipe: Recipe {
            mixture: 0.5,
            temperature: 0.05,
            sigma: args.proxy_sigma,
            background: 0.5,
            patches: 0,
            seed: 0,
        },
    };
    let prepared = study.prepare()?;
    let bootstrap = Bootstrap { resamples: 1000, seed: 1 };
    let mut table = format!(
        "{:22} {:>28} {:>28}\n",
        "",
        format!("CIDEr-D, {} proxies", prepared.proxies.len()),
        if args.images.is_some() { "CIDEr-D, photos" } else { "" }
    );
    for method in Method::ALL {
        let scores = prepared.measure(method)?;
        let mut row = format!("{:22} {:>28}", method.name(), text(&scores, &bootstrap));
        if let (Some(images), Some(references)) = (&args.images, &args.references) {
            let photos = prepared
                .bundles(method)
                .into_iter()
                .map(|bundle| evaluate::measure(&bundle, images, references))
                .collect::<Result<Vec<Scores>>>()?;
            row.push_str(&format!(" {:>28}", text(&photos, &bootstrap)));
        }
        row.push('\n');
        // A row takes a while: each is printed as soon as it is complete.
        output::print(&if table.is_empty() { row } else { std::mem::take(&mut table) + &row })?;
    }
    output::print(&format!(
        "\nSeeds per method: {}. Each cell has the mean over the seeds, its 95 % interval over images \
         in brackets, then the lowest and the highest seed.\n",
        args.seeds
    ))
}

/// Formats the mean, its interval and the range of the seeds.
fn text(seeds: &[Scores], bootstrap: &Bootstrap) -> String {
    let found = estimate(seeds, Metric::CiderD, bootstrap);
    let (least, most) = spread(seeds, Metric::CiderD);
    format!(
        "{:.1} ({:.1} to {:.1}) {:.1}..{:.1}",
        100.0 * found.value,
        100.0 * found.low,
        100.0 * found.high,
        100.0 * least,
        100.0 * most
    )
}
