//! Counts of n-grams.

use std::collections::HashMap;

/// A caption's words.
pub type Words = Vec<String>;

/// Length of the longest n-grams of BLEU and CIDEr.
pub const MAX_N: usize = 4;

/// The number of times that each n-gram of `words` occurs, for n from 1 to [`MAX_N`].
pub fn ngram_counts(words: &[String]) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for n in 1..=MAX_N {
        for ngram in words.windows(n) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    counts
}
