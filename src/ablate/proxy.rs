//! Proxy images, synthesised from captions.
//!
//! A corpus has about five captions per image. One of them becomes the image: its embedding is moved
//! towards the nearest nouns, with noise as wide as the modality gap; each patch shows a noun of the
//! caption, a similar noun or background. The other captions are the references. The scores say
//! nothing about photos, but a corpus gives thousands of samples.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use crate::engine::ImageFeatures;
use crate::error::{Error, ErrorKind, Result};

/// Captions per image.
const MIN_GROUP: usize = 5;
const MAX_GROUP: usize = 7;
/// Penalty per caption above five in a group, since almost all images have five.
const OVERSIZE_COST: f64 = 0.6;
/// Minimum margin of the mean cosine within groups over the mean cosine across groups, as a share of
/// the distance from the latter to 1. Relative, since encoders differ in their typical cosines.
const MARGIN: f64 = 0.1;

/// How a caption becomes a proxy image.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Share of the nouns in the image's embedding.
    pub mixture: f32,
    /// Softmax temperature over the nouns.
    pub temperature: f32,
    /// Standard deviation of the noise on an entry of the image and patch embeddings.
    pub sigma: f32,
    /// Share of the patches that show background.
    pub background: f32,
    pub patches: usize,
    pub seed: u64,
}

/// A proxy image and its reference captions.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub features: ImageFeatures,
    pub references: Vec<String>,
}

/// Splits captions in image order into groups of five to seven captions, one group per image. The
/// split maximises the sum of the cosines between neighbours within groups. `embeddings`
/// `[captions, dim]` have unit length. Returns the first index of each group.
///
/// # Errors
/// `ErrorKind::Config` if there are too few captions, or neighbours within groups are not more
/// similar than neighbours across groups.
pub fn group_captions(embeddings: &[f32], dim: usize) -> Result<Vec<usize>> {
    let count = embeddings.len() / dim;
    // In 64 bits, for sums over a whole corpus.
    let cosine = |left: usize, right: usize| -> f64 {
        let row = |index: usize| &embeddings[index * dim..(index + 1) * dim];
        row(left).iter().zip(row(right)).map(|(left, right)| left * right).sum::<f32>().into()
    };
    // best[i]: the score of the best split of the first i captions, and the start of its last group.
    let mut best = vec![(f64::NEG_INFINITY, 0); count + 1];
    best[0] = (0.0, 0);
    for end in MIN_GROUP..=count {
        for size in MIN_GROUP..=MAX_GROUP.min(end) {
            let start = end - size;
            let inside: f64 = (start..end - 1).map(|index| cosine(index, index + 1)).sum();
            let oversize = (size - MIN_GROUP) as f64 * OVERSIZE_COST;
            let total = best[start].0 + inside - oversize;
            if total > best[end].0 {
                best[end] = (total, start);
            }
        }
    }
    if count < MIN_GROUP || best[count].0 == f64::NEG_INFINITY {
        return Err(Error::new(ErrorKind::Config, "the captions are not in image order")
            .with_context("captions", count)
            .with_context(
                "allowed",
                format!("{MIN_GROUP} to {MAX_GROUP} consecutive captions per image"),
            ));
    }
    let mut starts = Vec::new();
    let mut end = count;
    while end > 0 {
        end = best[end].1;
        starts.push(end);
    }
    starts.reverse();
    let borders: Vec<f64> = starts[1..].iter().map(|start| cosine(start - 1, *start)).collect();
    if borders.is_empty() {
        return Ok(starts);
    }
    let all: f64 = (1..count).map(|index| cosine(index - 1, index)).sum();
    let across = borders.iter().sum::<f64>() / borders.len() as f64;
    let inside = (all - borders.iter().sum::<f64>()) / (count - 1 - borders.len()) as f64;
    if inside - across <= MARGIN * (1.0 - across) {
        return Err(Error::new(ErrorKind::Config, "the captions are not in image order")
            .with_context("cosine within an image", format!("{inside:.3}"))
            .with_context("across images", format!("{across:.3}"))
            .with_context("allowed", "captions of one image that are clearly more similar"));
    }
    Ok(starts)
}

/// Synthesises images from `captions` (unit length, `[captions, dim]`); `nouns` is `[nouns, dim]`,
/// `named_nouns` says which of them each caption names. There must be a noun.
pub fn build_images(
    captions: &[f32],
    named_nouns: &[Vec<u16>],
    nouns: &[f32],
    dim: usize,
    recipe: &Recipe,
) -> Vec<ImageFeatures> {
    let mut generator = StdRng::seed_from_u64(recipe.seed);
    let noun = |index: usize| &nouns[index * dim..(index + 1) * dim];
    captions
        .chunks_exact(dim)
        .zip(named_nouns)
        .map(|(caption, named_nouns)| {
            // For each noun, the shares of the nouns it resembles.
            let lookalikes: Vec<Vec<f32>> = named_nouns
                .iter()
                .map(|noun_index| {
                    softmax_shares(noun(usize::from(*noun_index)), nouns, dim, recipe.temperature)
                })
                .collect();
            let likely = softmax_shares(caption, nouns, dim, recipe.temperature);
            let mut mixture = vec![0.0; dim];
            for (row, share) in nouns.chunks_exact(dim).zip(&likely) {
                mixture.iter_mut().zip(row).for_each(|(sum, entry)| *sum += share * entry);
            }
            let (caption, mixture) = (l2_normalize(caption.to_vec()), l2_normalize(mixture));
            let mixed = caption.iter().zip(&mixture).map(|(caption, mixture)| {
                (1.0 - recipe.mixture) * caption + recipe.mixture * mixture
            });
            let image = add_noise(l2_normalize(mixed.collect()), recipe.sigma, &mut generator);
            let mut patches = Vec::with_capacity(recipe.patches * dim);
            for _ in 0..recipe.patches {
                let background = generator.random::<f32>() < recipe.background;
                let shown = match lookalikes.as_slice() {
                    [_, ..] if !background => {
                        let shares_of_noun =
                            &lookalikes[generator.random_range(0..lookalikes.len())];
                        sample_index(shares_of_noun, &mut generator)
                    }
                    _ => generator.random_range(0..likely.len()),
                };
                patches.extend(add_noise(noun(shown).to_vec(), recipe.sigma, &mut generator));
            }
            ImageFeatures { image, patches }
        })
        .collect()
}

/// Softmax over the cosines with each noun.
fn softmax_shares(caption: &[f32], nouns: &[f32], dim: usize, temperature: f32) -> Vec<f32> {
    let cosines: Vec<f32> = nouns
        .chunks_exact(dim)
        .map(|noun| noun.iter().zip(caption).map(|(noun, caption)| noun * caption).sum::<f32>())
        .collect();
    let largest = cosines.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> =
        cosines.iter().map(|cosine| ((cosine - largest) / temperature).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn sample_index(shares: &[f32], generator: &mut impl Rng) -> usize {
    let mut left = generator.random::<f32>();
    for (index, share) in shares.iter().enumerate() {
        left -= share;
        if left < 0.0 {
            return index;
        }
    }
    shares.len().saturating_sub(1)
}

fn add_noise(mut embedding: Vec<f32>, sigma: f32, generator: &mut impl Rng) -> Vec<f32> {
    for entry in &mut embedding {
        let noise: f32 = StandardNormal.sample(generator);
        *entry += sigma * noise;
    }
    embedding
}

fn l2_normalize(mut row: Vec<f32>) -> Vec<f32> {
    let length = row.iter().map(|entry| entry * entry).sum::<f32>().sqrt().max(1e-12);
    row.iter_mut().for_each(|entry| *entry /= length);
    row
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;

    use super::*;

    /// Captions near one direction per image.
    fn captions(sizes: &[usize]) -> Vec<f32> {
        let dim = sizes.len();
        sizes
            .iter()
            .enumerate()
            .flat_map(|(image, size)| (0..*size).map(move |caption| (image, caption)))
            .flat_map(|(image, caption)| {
                let mut row = vec![0.05 * caption as f32; dim];
                row[image] = 1.0;
                l2_normalize(row)
            })
            .collect()
    }

    #[test]
    fn groups_end_at_a_change_of_direction() {
        let sizes = [5, 5, 6, 5, 7, 5];
        assert_eq!(group_captions(&captions(&sizes), sizes.len()).unwrap(), [0, 5, 10, 16, 21, 28]);
        let error = group_captions(&captions(&[4]), 1).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn shuffled_captions_are_refused() {
        let sizes = [5; 24];
        let ordered = captions(&sizes);
        assert_eq!(group_captions(&ordered, sizes.len()).unwrap().len(), 24);
        let mut rows: Vec<&[f32]> = ordered.chunks_exact(sizes.len()).collect();
        rows.shuffle(&mut StdRng::seed_from_u64(1));
        let error = group_captions(&rows.concat(), sizes.len()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("across images"), "{error}");
    }

    #[test]
    fn an_image_shows_the_nouns_of_its_caption() {
        let nouns = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]].concat();
        let recipe = Recipe {
            mixture: 1.0,
            temperature: 0.05,
            sigma: 0.0,
            background: 0.0,
            patches: 4,
            seed: 1,
        };
        let named_nouns = [vec![0]];
        let seen =
            build_images(&l2_normalize(vec![1.0, 0.3, 0.0]), &named_nouns, &nouns, 3, &recipe);
        assert!(seen[0].image[0] > 0.99, "{seen:?}");
        assert_eq!(seen[0].patches, [1.0, 0.0, 0.0].repeat(4));
        let elsewhere = Recipe { background: 1.0, patches: 60, ..recipe };
        let seen = build_images(&[1.0, 0.0, 0.0], &named_nouns, &nouns, 3, &elsewhere);
        assert!(seen[0].patches.chunks(3).any(|patch| patch == [0.0, 1.0, 0.0]));
    }
}
