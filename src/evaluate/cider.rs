//! CIDEr-D (Vedantam, Zitnick and Parikh 2015, arXiv:1411.5726), as `pycocoevalcap` computes it:
//! the cosine of n-gram counts weighted by how rare each n-gram is among the images' references,
//! clipped, with a penalty for a length unlike the references'.

use std::collections::{HashMap, HashSet};

use super::ngrams::{LONGEST, Words, counts};

/// Width of the length penalty, in words.
const SIGMA: f64 = 6.0;

/// CIDEr-D of each of `captions` against its `references`, 10 at most, 1 being printed as 100.
/// The document frequencies are those of all `references`.
pub fn cider_d(captions: &[Words], references: &[Vec<Words>]) -> Vec<f64> {
    let frequencies = Frequencies::new(references);
    captions
        .iter()
        .zip(references)
        .map(|(caption, references)| {
            let hypothesis = frequencies.weigh(caption);
            let sum: f64 = references
                .iter()
                .map(|reference| hypothesis.similarity(&frequencies.weigh(reference)))
                .sum();
            10.0 * sum / references.len().max(1) as f64
        })
        .collect()
}

/// In how many images' references each n-gram stands.
struct Frequencies<'a> {
    images: HashMap<&'a [String], usize>,
    /// Logarithm of the number of images.
    log_images: f64,
}

impl<'a> Frequencies<'a> {
    fn new(references: &'a [Vec<Words>]) -> Self {
        let mut images = HashMap::new();
        for image in references {
            let ngrams: HashSet<&[String]> =
                image.iter().flat_map(|reference| counts(reference).into_keys()).collect();
            for ngram in ngrams {
                *images.entry(ngram).or_default() += 1;
            }
        }
        Self { images, log_images: (references.len() as f64).ln() }
    }

    fn weigh<'b>(&self, words: &'b Words) -> Weighted<'b> {
        let mut weighted = Weighted {
            ngrams: HashMap::new(),
            norms: [0.0; LONGEST],
            // Counted in bigrams.
            length: words.len().saturating_sub(1) as f64,
        };
        for (ngram, count) in counts(words) {
            let frequency = self.images.get(ngram).copied().unwrap_or(0).max(1) as f64;
            let weight = count as f64 * (self.log_images - frequency.ln());
            weighted.norms[ngram.len() - 1] += weight * weight;
            weighted.ngrams.insert(ngram, weight);
        }
        weighted.norms = weighted.norms.map(f64::sqrt);
        weighted
    }
}

/// A caption's n-grams by weight.
struct Weighted<'a> {
    ngrams: HashMap<&'a [String], f64>,
    /// For each n, the length of the vector of weights.
    norms: [f64; LONGEST],
    length: f64,
}

impl Weighted<'_> {
    /// Mean over n of the clipped cosines, less the length penalty.
    fn similarity(&self, reference: &Weighted<'_>) -> f64 {
        let mut products = [0.0; LONGEST];
        for (ngram, weight) in &self.ngrams {
            let other = reference.ngrams.get(ngram).copied().unwrap_or(0.0);
            products[ngram.len() - 1] += weight.min(other) * other;
        }
        let difference = self.length - reference.length;
        let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
        let cosine = |n: usize| {
            let norms = self.norms[n] * reference.norms[n];
            if norms == 0.0 { products[n] } else { products[n] / norms }
        };
        penalty * (0..LONGEST).map(cosine).sum::<f64>() / LONGEST as f64
    }
}
