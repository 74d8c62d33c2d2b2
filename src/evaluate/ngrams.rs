//! Runs of words and how often they occur.

use std::collections::HashMap;

/// A caption's words.
pub type Words = Vec<String>;

/// The longest n-gram that BLEU and CIDEr count.
pub const LONGEST: usize = 4;

/// The n-grams of `words` with `n` from 1 to [`LONGEST`], and how often each occurs.
pub fn counts(words: &[String]) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for n in 1..=LONGEST {
        for ngram in words.windows(n) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    counts
}
