//! CIDEr-D (Vedantam, Zitnick and Parikh 2015, arXiv:1411.5726) as `pycocoevalcap` computes it: the
//! clipped cosine of TF-IDF weighted n-gram counts, with a penalty for a length other than the
//! reference's.

use std::collections::{HashMap, HashSet};

use super::ngrams::{MAX_N, Words, ngram_counts};

/// Width of the length penalty, in words.
const SIGMA: f64 = 6.0;

/// CIDEr-D, from 0 to 10, of each caption against its references. The document frequencies are
/// those of all `references`.
pub fn cider_d(captions: &[Words], references: &[Vec<Words>]) -> Vec<f64> {
    let frequencies = Frequencies::new(references);
    captions
        .iter()
        .zip(references)
        .map(|(caption, references)| {
            let weighted = frequencies.weigh(caption);
            let sum: f64 = references
                .iter()
                .map(|reference| weighted.similarity(&frequencies.weigh(reference)))
                .sum();
            10.0 * sum / references.len().max(1) as f64
        })
        .collect()
}

/// Document frequencies.
struct Frequencies<'a> {
    /// Number of images whose references contain the n-gram.
    images: HashMap<&'a [String], usize>,
    /// Logarithm of the number of images.
    log_images: f64,
}

impl<'a> Frequencies<'a> {
    fn new(references: &'a [Vec<Words>]) -> Self {
        let mut images = HashMap::new();
        for image in references {
            let ngrams: HashSet<&[String]> =
                image.iter().flat_map(|reference| ngram_counts(reference).into_keys()).collect();
            for ngram in ngrams {
                *images.entry(ngram).or_default() += 1;
            }
        }
        Self { images, log_images: (references.len() as f64).ln() }
    }

    fn weigh<'b>(&self, words: &'b Words) -> Weighted<'b> {
        let mut weighted = Weighted {
            ngrams: HashMap::new(),
            norms: [0.0; MAX_N],
            // Counted in bigrams.
            length: words.len().saturating_sub(1) as f64,
        };
        for (ngram, count) in ngram_counts(words) {
            let frequency = self.images.get(ngram).copied().unwrap_or(0).max(1) as f64;
            let weight = count as f64 * (self.log_images - frequency.ln());
            weighted.norms[ngram.len() - 1] += weight * weight;
            weighted.ngrams.insert(ngram, weight);
        }
        weighted.norms = weighted.norms.map(f64::sqrt);
        weighted
    }
}

/// The n-grams of a caption, with TF-IDF weights.
struct Weighted<'a> {
    ngrams: HashMap<&'a [String], f64>,
    /// For each n, the norm of the weights.
    norms: [f64; MAX_N],
    length: f64,
}

impl Weighted<'_> {
    /// Mean over n of the clipped cosines, times the length penalty.
    fn similarity(&self, reference: &Weighted<'_>) -> f64 {
        let mut products = [0.0; MAX_N];
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
        penalty * (0..MAX_N).map(cosine).sum::<f64>() / MAX_N as f64
    }
}
