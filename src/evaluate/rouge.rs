//! ROUGE-L (Lin 2004) as `pycocoevalcap` computes it: the F-measure of the longest common
//! subsequence, from the best precision and the best recall over the references.

use super::ngrams::Words;

/// Weight of recall relative to precision.
const BETA: f64 = 1.2;

/// ROUGE-L of one caption, from 0 to 1.
pub fn rouge_l(caption: &Words, references: &[Words]) -> f64 {
    let share = |common: usize, length: usize| common as f64 / length.max(1) as f64;
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in references {
        let common = longest_common_subsequence(caption, reference);
        precision = precision.max(share(common, caption.len()));
        recall = recall.max(share(common, reference.len()));
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

fn longest_common_subsequence(left: &Words, right: &Words) -> usize {
    let mut lengths = vec![0; right.len() + 1];
    for word in left {
        let mut diagonal = 0;
        for (column, other) in right.iter().enumerate() {
            let above = lengths[column + 1];
            lengths[column + 1] =
                if word == other { diagonal + 1 } else { above.max(lengths[column]) };
            diagonal = above;
        }
    }
    lengths[right.len()]
}
