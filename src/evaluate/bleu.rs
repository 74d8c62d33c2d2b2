//! BLEU-1 to BLEU-4 (Papineni et al. 2002) as `pycocoevalcap` computes them: over the whole corpus,
//! with the reference whose length is closest to the caption's.

use std::collections::HashMap;
use std::ops::AddAssign;

use super::ngrams::{MAX_N, Words, ngram_counts};

/// Keep quotients finite; the values are those of `pycocoevalcap`.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// One caption's contribution to the BLEU of the corpus; contributions are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// For each n, the caption's n-grams that occur in a reference, clipped.
    matches: [f64; MAX_N],
    /// For each n, the caption's n-grams.
    ngrams: [f64; MAX_N],
    length: f64,
    reference_length: f64,
}

impl Statistics {
    pub fn new(caption: &Words, references: &[Words]) -> Self {
        let found = ngram_counts(caption);
        let mut most: HashMap<&[String], usize> = HashMap::new();
        for reference in references {
            for (ngram, count) in ngram_counts(reference) {
                let entry = most.entry(ngram).or_default();
                *entry = count.max(*entry);
            }
        }
        let mut statistics = Self { length: caption.len() as f64, ..Self::default() };
        for (ngram, count) in found {
            let allowed = most.get(ngram).copied().unwrap_or(0);
            statistics.matches[ngram.len() - 1] += count.min(allowed) as f64;
            statistics.ngrams[ngram.len() - 1] += count as f64;
        }
        let distance = |length: &usize| (length.abs_diff(caption.len()), *length);
        let closest = references.iter().map(Vec::len).min_by_key(distance);
        statistics.reference_length = closest.unwrap_or(0) as f64;
        statistics
    }

    /// BLEU-1 to BLEU-4, each from 0 to 1.
    pub fn bleu(&self) -> [f64; MAX_N] {
        let ratio = (self.length + TINY) / (self.reference_length + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|n| {
            product *= (self.matches[n] + TINY) / (self.ngrams[n] + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }
}

impl AddAssign<&Self> for Statistics {
    fn add_assign(&mut self, other: &Self) {
        for n in 0..MAX_N {
            self.matches[n] += other.matches[n];
            self.ngrams[n] += other.ngrams[n];
        }
        self.length += other.length;
        self.reference_length += other.reference_length;
    }
}
