//! Caption metrics against human references: BLEU, ROUGE-L, CIDEr-D and CLIPScore, with confidence
//! intervals.
//!
//! The metrics are pure functions of captions and references, and equal those of `pycocoevalcap` on
//! the same words.

pub mod bleu;
pub mod bootstrap;
pub mod cider;
pub mod clipscore;
pub mod coco;
pub mod ngrams;
pub mod report;
pub mod rouge;
pub mod tokens;

use std::fmt;

use bootstrap::{Bootstrap, Difference, Estimate};
use clipscore::ClipScores;
use ngrams::Words;

/// A caption metric. All are printed times 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Bleu1,
    Bleu2,
    Bleu3,
    Bleu4,
    RougeL,
    CiderD,
    /// Only for bundles with a text tower.
    ClipScore,
    /// Only for bundles with a text tower.
    RefClipScore,
}

impl Metric {
    const ON_WORDS: [Self; 6] =
        [Self::Bleu1, Self::Bleu2, Self::Bleu3, Self::Bleu4, Self::RougeL, Self::CiderD];
    const ON_EMBEDDINGS: [Self; 2] = [Self::ClipScore, Self::RefClipScore];
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Bleu1 => "BLEU-1",
            Self::Bleu2 => "BLEU-2",
            Self::Bleu3 => "BLEU-3",
            Self::Bleu4 => "BLEU-4",
            Self::RougeL => "ROUGE-L",
            Self::CiderD => "CIDEr-D",
            Self::ClipScore => "CLIPScore",
            Self::RefClipScore => "RefCLIPScore",
        })
    }
}

/// Each image's contribution to the metrics.
pub struct Scores {
    bleu: Vec<bleu::Statistics>,
    rouge_l: Vec<f64>,
    cider_d: Vec<f64>,
    clip: Option<ClipScores>,
}

impl Scores {
    /// Scores `captions` against the `references` of the same images.
    pub fn new(captions: &[String], references: &[Vec<String>]) -> Self {
        let captions: Vec<Words> = captions.iter().map(|caption| tokens::words(caption)).collect();
        let split = |texts: &Vec<String>| texts.iter().map(|text| tokens::words(text)).collect();
        let references: Vec<Vec<Words>> = references.iter().map(split).collect();
        Self::from_words(&captions, &references)
    }

    /// As [`Self::new`], for captions that are split into words.
    pub fn from_words(captions: &[Words], references: &[Vec<Words>]) -> Self {
        let pairs = || captions.iter().zip(references);
        Self {
            bleu: pairs()
                .map(|(caption, references)| bleu::Statistics::new(caption, references))
                .collect(),
            rouge_l: pairs()
                .map(|(caption, references)| rouge::rouge_l(caption, references))
                .collect(),
            cider_d: cider::cider_d(captions, references),
            clip: None,
        }
    }

    /// Adds the CLIP scores of the same captions.
    pub fn with_clip(mut self, scores: ClipScores) -> Self {
        self.clip = Some(scores);
        self
    }

    /// The metrics that can be computed.
    pub fn metrics(&self) -> Vec<Metric> {
        let on_embeddings = self.clip.as_ref().map(|_| Metric::ON_EMBEDDINGS);
        Metric::ON_WORDS.into_iter().chain(on_embeddings.into_iter().flatten()).collect()
    }

    /// Images scored.
    pub fn len(&self) -> usize {
        self.cider_d.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cider_d.is_empty()
    }

    /// CIDEr-D of each image.
    pub fn cider_d(&self) -> &[f64] {
        &self.cider_d
    }

    /// `metric` over the images at `indices`, which may repeat; NaN if it can't be computed. CIDEr-D
    /// uses the document frequencies of all images.
    pub fn value(&self, metric: Metric, indices: &[usize]) -> f64 {
        let mean = |values: &[f64]| {
            indices.iter().map(|index| values[*index]).sum::<f64>() / indices.len().max(1) as f64
        };
        let bleu = |n: usize| {
            let mut sum = bleu::Statistics::default();
            indices.iter().for_each(|index| sum += &self.bleu[*index]);
            sum.bleu()[n]
        };
        match metric {
            Metric::Bleu1 => bleu(0),
            Metric::Bleu2 => bleu(1),
            Metric::Bleu3 => bleu(2),
            Metric::Bleu4 => bleu(3),
            Metric::RougeL => mean(&self.rouge_l),
            Metric::CiderD => mean(&self.cider_d),
            Metric::ClipScore => self.clip.as_ref().map_or(f64::NAN, |clip| mean(&clip.clip_score)),
            Metric::RefClipScore => {
                self.clip.as_ref().map_or(f64::NAN, |clip| mean(&clip.ref_clip_score))
            }
        }
    }

    /// `metric` over all images, with its confidence interval.
    pub fn estimate(&self, metric: Metric, bootstrap: &Bootstrap) -> Estimate {
        bootstrap.estimate(self.len(), |indices| self.value(metric, indices))
    }

    /// The difference in `metric` between these captions and `others` of the same images.
    pub fn compare(&self, others: &Self, metric: Metric, bootstrap: &Bootstrap) -> Difference {
        bootstrap.compare(self.len(), |indices| {
            self.value(metric, indices) - others.value(metric, indices)
        })
    }
}
