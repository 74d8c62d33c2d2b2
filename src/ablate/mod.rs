//! Ablation study: trains the methods that FusionCap combines with the same encoder and corpus,
//! several seeds each, and evaluates them on the same images.
//!
//! Uses `train`, `engine` and `evaluate`. The images are proxies ([`proxy`]), synthesised from
//! captions.

pub mod provenance;
pub mod proxy;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{Bundle, MANIFEST};
use crate::config::Model;
use crate::encoder::EncoderConfig;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::evaluate::bootstrap::{Bootstrap, Estimate};
use crate::evaluate::{Metric, Scores};
use crate::model::noise::NoiseKind;
use crate::train::checkpoint;
use crate::train::corpus::Corpus;
use crate::train::nouns::Nouns;
use crate::train::settings::Settings;
use crate::train::{self, Request, embed};
use provenance::Provenance;
use proxy::{Proxy, Recipe};

const BATCH: usize = 32;

/// A method: a subset of FusionCap's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Noise alone (Nukrai et al. 2022).
    CapDec,
    /// Projection alone (Li et al. 2023).
    DeCap,
    NoiseAndProjection,
    /// All three.
    FusionCap,
}

impl Method {
    pub const ALL: [Self; 4] =
        [Self::CapDec, Self::DeCap, Self::NoiseAndProjection, Self::FusionCap];

    pub fn name(self) -> &'static str {
        match self {
            Self::CapDec => "noise (CapDec)",
            Self::DeCap => "projection (DeCap)",
            Self::NoiseAndProjection => "noise + projection",
            Self::FusionCap => "+ local (FusionCap)",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::CapDec => "capdec",
            Self::DeCap => "decap",
            Self::NoiseAndProjection => "noise-projection",
            Self::FusionCap => "fusioncap",
        }
    }

    /// `settings` with this method's parts enabled, the others disabled, and `seed`.
    pub fn settings(self, settings: &Settings, seed: u64) -> Settings {
        let mut own = settings.clone();
        own.seed = seed;
        own.local.enabled = self == Self::FusionCap;
        match self {
            Self::CapDec => {
                own.noise.kind = NoiseKind::Fixed;
                own.projection.enabled = false;
            }
            Self::DeCap => {
                own.noise.kind = NoiseKind::None;
                own.projection.enabled = true;
                own.projection.in_training = false;
            }
            Self::NoiseAndProjection | Self::FusionCap => own.projection.enabled = true,
        }
        own
    }
}

/// The inputs and outputs of a study.
pub struct Study {
    /// The encoder, the corpus in image order, the caches and the settings of every run.
    pub request: Request,
    pub seeds: u64,
    /// Number of held-out proxy images.
    pub proxies: usize,
    /// How captions become proxies; the encoder and the settings set `patches` and `seed`.
    pub recipe: Recipe,
}

/// A study that is ready to train and evaluate.
pub struct Prepared {
    request: Request,
    seeds: Vec<u64>,
    pub proxies: Vec<Proxy>,
}

impl Study {
    /// Holds out the proxies and writes the training corpus to `request.out`.
    ///
    /// # Errors
    /// `ErrorKind::Config` for a corpus that is too small, not in image order or without nouns, for
    /// settings without noise, and for bundles of another study in `request.out`; errors of the
    /// encoder and of files.
    pub fn prepare(self) -> Result<Prepared> {
        let Self { mut request, seeds, proxies, recipe } = self;
        check_noise(&request.settings)?;
        let encoder = EncoderConfig::open(&request.encoder)?;
        let dim = encoder.embedding_dim;
        let embed = |what, texts: &[String]| {
            embed::embed(what, &request.encoder, &encoder, texts, &request.cache, &request.runtime)
        };
        for folder in [&request.out, &request.cache] {
            fs::create_dir_all(folder).map_err(|error| Error::unwritable(folder, error))?;
        }
        let captions = Corpus::read_in_order(&request.corpora, &request.settings)?;
        let provenance = Provenance::new(&request.encoder, &captions, proxies, &request.settings)?;
        provenance.check(&request.out)?;
        let embeddings = embed("embedding captions", &captions)?;
        check_stop(&request)?;
        let starts = proxy::group_captions(&embeddings, dim)?;
        let split = first_held_out(&starts, proxies)?;
        let training = &captions[..split];
        let nouns = Nouns::find(training, &request.settings.local);
        if nouns.names.is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                "the corpus has no frequent noun for the proxies",
            )
            .with_context("local.noun_count", request.settings.local.noun_count)
            .with_context("captions", training.len()));
        }
        let noun_embeddings = embed("embedding nouns", &nouns.names)?;
        check_stop(&request)?;
        let held_out: Vec<usize> = starts.iter().copied().filter(|start| *start >= split).collect();
        let image_captions: Vec<String> =
            held_out.iter().map(|start| captions[*start].clone()).collect();
        let named_nouns = nouns.find_in(&image_captions);
        let image_embeddings: Vec<f32> = held_out
            .iter()
            .flat_map(|start| &embeddings[start * dim..(start + 1) * dim])
            .copied()
            .collect();
        let recipe = Recipe { patches: encoder.num_patches, seed: request.settings.seed, ..recipe };
        let ends = held_out.iter().skip(1).copied().chain([captions.len()]);
        let proxies =
            proxy::build_images(&image_embeddings, &named_nouns, &noun_embeddings, dim, &recipe)
                .into_iter()
                .zip(held_out.iter().zip(ends))
                .map(|(features, (start, end))| Proxy {
                    features,
                    references: captions[start + 1..end].to_vec(),
                })
                .collect();
        provenance.write(&request.out)?;
        let corpus = request.out.join("corpus.txt");
        write_corpus(training, &corpus)?;
        request.corpora = vec![corpus];
        let first = request.settings.seed;
        Ok(Prepared { request, seeds: (first..first + seeds).collect(), proxies })
    }
}

impl Prepared {
    /// Trains `method` with each seed and scores it on the proxies. Existing bundles are not trained
    /// again; an interrupted run is resumed.
    ///
    /// # Errors
    /// Those of [`train::run`] and of the engine; `ErrorKind::Runtime` at a stop.
    pub fn measure(&self, method: Method) -> Result<Vec<Scores>> {
        self.bundles(method)
            .into_iter()
            .zip(&self.seeds)
            .map(|(bundle, seed)| {
                self.train(method, *seed, &bundle)?;
                self.score(Bundle::open(&bundle)?)
            })
            .collect()
    }

    /// The directories of the bundles of `method`, one per seed.
    pub fn bundles(&self, method: Method) -> Vec<PathBuf> {
        let folder = |seed: &u64| self.request.out.join(format!("{}-{seed}", method.folder()));
        self.seeds.iter().map(folder).collect()
    }

    fn train(&self, method: Method, seed: u64, bundle: &Path) -> Result<()> {
        if bundle.join(MANIFEST).is_file() {
            return Ok(());
        }
        let Request { encoder, corpora, cache, settings, runtime, device, stop, .. } =
            &self.request;
        let checkpoint = bundle.with_extension("checkpoint");
        train::run(&Request {
            encoder: encoder.clone(),
            corpora: corpora.clone(),
            out: bundle.to_path_buf(),
            cache: cache.clone(),
            checkpoint: checkpoint.clone(),
            settings: method.settings(settings, seed),
            from: None,
            notes: None,
            text_tower: false,
            runtime: runtime.clone(),
            device: *device,
            resume: checkpoint::exists(&checkpoint),
            stop: Arc::clone(stop),
        })?;
        // Large, and no longer needed.
        let _ = fs::remove_file(checkpoint.with_extension("best"));
        for folder in [checkpoint.with_extension("old"), checkpoint] {
            let _ = fs::remove_dir_all(folder);
        }
        Ok(())
    }

    fn score(&self, bundle: Bundle) -> Result<Scores> {
        let settings = Model::default();
        let mut engine = Engine::load(bundle, &self.request.runtime, &settings, BATCH)?;
        let mut captions = Vec::with_capacity(self.proxies.len());
        for batch in self.proxies.chunks(BATCH) {
            check_stop(&self.request)?;
            let features: Vec<_> = batch.iter().map(|proxy| proxy.features.clone()).collect();
            captions.extend(
                engine.caption_features(&features)?.into_iter().map(|caption| caption.text),
            );
        }
        let references: Vec<Vec<String>> =
            self.proxies.iter().map(|proxy| proxy.references.clone()).collect();
        Ok(Scores::new(&captions, &references))
    }
}

/// The mean of `metric` over the seeds, with its confidence interval over images.
pub fn estimate(seeds: &[Scores], metric: Metric, bootstrap: &Bootstrap) -> Estimate {
    let images = seeds.first().map_or(0, Scores::len);
    bootstrap.estimate(images, |indices| {
        let sum: f64 = seeds.iter().map(|scores| scores.value(metric, indices)).sum();
        sum / seeds.len() as f64
    })
}

/// The minimum and the maximum of `metric` over the seeds.
pub fn spread(seeds: &[Scores], metric: Metric) -> (f64, f64) {
    let values = seeds.iter().map(|scores| {
        let images: Vec<usize> = (0..scores.len()).collect();
        scores.value(metric, &images)
    });
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
        (min.min(value), max.max(value))
    })
}

/// The index of the first caption of the last `proxies` groups.
fn first_held_out(starts: &[usize], proxies: usize) -> Result<usize> {
    match starts.iter().rev().nth(proxies.saturating_sub(1)) {
        // At least one group must remain for training.
        Some(split) if *split > 0 && proxies > 0 => Ok(*split),
        _ => Err(Error::new(ErrorKind::Config, "--proxies is out of range")
            .with_context("value", proxies)
            .with_context("images", starts.len())
            .with_context("allowed", "at least 1, and fewer than the corpus has images")),
    }
}

/// Three methods use the noise of the settings, one of them only its sigma.
fn check_noise(settings: &Settings) -> Result<()> {
    let noise = &settings.noise;
    let refusal = |field: &'static str| {
        Error::new(ErrorKind::Config, format!("{field}: the methods to compare need noise"))
    };
    if noise.kind == NoiseKind::None {
        return Err(refusal("noise.kind")
            .with_context("value", "none")
            .with_context("allowed", "fixed, mixture or learned"));
    }
    if noise.sigma <= 0.0 {
        return Err(refusal("noise.sigma")
            .with_context("value", noise.sigma)
            .with_context("allowed", "more than 0"));
    }
    Ok(())
}

fn check_stop(request: &Request) -> Result<()> {
    if !request.stop.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Runtime, "interrupted; run the same command to continue"))
}

fn write_corpus(captions: &[String], path: &Path) -> Result<()> {
    fs::write(path, captions.join("\n") + "\n").map_err(|error| Error::unwritable(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_remains_for_training() {
        let starts = [0, 5, 10];
        assert_eq!(first_held_out(&starts, 1).unwrap(), 10);
        assert_eq!(first_held_out(&starts, 2).unwrap(), 5);
        for proxies in [0, 3, 4] {
            let refused = first_held_out(&starts, proxies).unwrap_err();
            assert_eq!(refused.exit_code(), 2);
            assert!(refused.to_string().contains("images: 3"), "{refused}");
        }
    }
}
