//! The training examples: tokens, embeddings and nouns of the captions, drawn into batches.
//!
//! Randomness depends only on the seed and the step, so that an interrupted run resumes exactly.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::noun_bank::NounBank;
use super::settings::Settings;
use super::token_states::TokenStates;
use super::tokenizer::PAD;
use crate::error::Result;
use crate::model::Conditions;
use crate::model::local::LocalFeatures;
use crate::model::noise::Draws;

/// Batches per bucket. Captions are sorted by length within a bucket, which reduces padding.
const BUCKET: usize = 64;
/// The step number that seeds the noise of the first held-out batch.
const HELD_OUT_STEP: u64 = u64::MAX;

/// Tokens and embeddings of all captions; captions from index `split` on are held out.
pub struct Examples {
    pub tokens: Vec<Vec<u16>>,
    /// Unit length, `[captions, dim]`.
    pub embeddings: Vec<f32>,
    pub dim: usize,
    pub split: usize,
    pub nouns: NounBank,
    /// Source of the local embeddings instead of the nouns, if configured.
    pub token_states: Option<TokenStates>,
}

/// A batch as tensors: the conditions, the decoder's inputs, the targets and their mask.
pub struct Batch {
    pub conditions: Conditions,
    pub inputs: Tensor<2, Int>,
    /// `[batch * tokens, 1]`
    pub targets: Tensor<2, Int>,
    /// `[batch * tokens, 1]`; 1 for tokens, 0 for padding.
    pub target_mask: Tensor<2>,
    pub num_tokens: usize,
}

impl Examples {
    /// Unigram entropy of the training captions' tokens in nats: the loss of a model that knows only
    /// the token frequencies.
    pub fn unigram_entropy(&self) -> f64 {
        let mut counts = vec![0_u64; usize::from(u16::MAX) + 1];
        for token in self.tokens[..self.split].iter().flat_map(|caption| &caption[1..]) {
            counts[usize::from(*token)] += 1;
        }
        let total = counts.iter().sum::<u64>() as f64;
        let shares = counts.iter().filter(|count| **count > 0).map(|count| *count as f64 / total);
        shares.map(|share| -share * share.ln()).sum()
    }

    /// Batches per epoch.
    pub fn batches_per_epoch(&self, settings: &Settings) -> usize {
        self.split.div_ceil(settings.batch_size)
    }

    /// The indices of the training captions in `epoch`, in batches of similar length.
    pub fn epoch(&self, epoch: usize, settings: &Settings) -> Vec<Vec<usize>> {
        let mut generator = step_rng(settings.seed, epoch as u64 + (1 << 40));
        let mut order: Vec<usize> = (0..self.split).collect();
        order.shuffle(&mut generator);
        let size = settings.batch_size;
        for bucket in order.chunks_mut(size * BUCKET) {
            bucket.sort_by_key(|index| self.tokens[*index].len());
        }
        let mut batches: Vec<Vec<usize>> = order.chunks(size).map(<[usize]>::to_vec).collect();
        batches.shuffle(&mut generator);
        batches
    }

    /// The batch of the captions at `indices`, with the noise of `step`.
    pub fn batch(
        &self,
        indices: &[usize],
        step: u64,
        settings: &Settings,
        device: &Device,
    ) -> Result<Batch> {
        let rows = indices.len();
        let captions = || indices.iter().map(|index| &self.tokens[*index]);
        let longest = captions().map(Vec::len).max().unwrap_or(2) - 1;
        let mut inputs = vec![PAD; rows * longest];
        let mut targets = vec![PAD; rows * longest];
        let mut target_mask = vec![0.0_f32; rows * longest];
        for (row, caption) in captions().enumerate() {
            for (column, pair) in caption.windows(2).enumerate() {
                inputs[row * longest + column] = i64::from(pair[0]);
                targets[row * longest + column] = i64::from(pair[1]);
                target_mask[row * longest + column] = 1.0;
            }
        }
        let flat = [rows * longest, 1];
        let mut generator = step_rng(settings.seed, step);
        Ok(Batch {
            conditions: self.conditions(indices, &mut generator, settings, device)?,
            inputs: Tensor::from_data(TensorData::new(inputs, [rows, longest]), device),
            targets: Tensor::from_data(TensorData::new(targets, flat), device),
            target_mask: Tensor::from_data(TensorData::new(target_mask, flat), device),
            num_tokens: captions().map(|caption| caption.len() - 1).sum(),
        })
    }

    /// The batches of held-out captions, with the same noise on every call.
    pub fn held_out<'a>(
        &'a self,
        settings: &'a Settings,
        device: &'a Device,
    ) -> impl Iterator<Item = Result<Batch>> + 'a {
        let mut indices: Vec<usize> = (self.split..self.tokens.len()).collect();
        indices.sort_by_key(|index| self.tokens[*index].len());
        let size = settings.batch_size;
        (0..indices.len().div_ceil(size)).map(move |batch| {
            let chunk = &indices[batch * size..indices.len().min((batch + 1) * size)];
            self.batch(chunk, HELD_OUT_STEP - batch as u64, settings, device)
        })
    }

    fn conditions(
        &self,
        indices: &[usize],
        generator: &mut impl Rng,
        settings: &Settings,
        device: &Device,
    ) -> Result<Conditions> {
        let (rows, dim) = (indices.len(), self.dim);
        let embeddings: Vec<f32> =
            indices.iter().flat_map(|index| self.embedding(*index)).copied().collect();
        let normal: Vec<f32> =
            (0..rows * dim).map(|_| StandardNormal.sample(&mut *generator)).collect();
        let uniform: Vec<f32> = (0..rows).map(|_| generator.random()).collect();
        let matrix = |values: Vec<f32>, columns: usize| {
            Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), device)
        };
        let local_features = match (settings.local.enabled, &self.token_states) {
            (false, _) => None,
            (true, None) => Some(self.nouns.draw(indices, &settings.local, generator)),
            (true, Some(states)) => Some(states.draw(indices, &settings.local, generator)?),
        };
        let items = settings.local.items;
        let local_features = local_features.map(|drawn| {
            let embeddings = TensorData::new(drawn.embeddings, [rows, items, dim]);
            let padding_mask = TensorData::new(drawn.padding_mask, [rows, items]);
            LocalFeatures {
                embeddings: Tensor::from_data(embeddings, device),
                padding_mask: Tensor::<2, Bool>::from_data(padding_mask, device),
            }
        });
        Ok(Conditions {
            embeddings: matrix(embeddings, dim),
            draws: Draws { normal: matrix(normal, dim), uniform: matrix(uniform, 1) },
            local_features,
        })
    }

    fn embedding(&self, index: usize) -> &[f32] {
        &self.embeddings[index * self.dim..(index + 1) * self.dim]
    }
}

/// An independent generator per step.
fn step_rng(seed: u64, number: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::nouns::Nouns;

    #[test]
    fn the_unigram_entropy_counts_the_predicted_tokens() {
        let examples = Examples {
            tokens: vec![vec![1, 5, 2], vec![1, 5, 6, 7, 2], vec![1, 8, 2]],
            embeddings: Vec::new(),
            dim: 1,
            split: 2,
            nouns: NounBank::new(Nouns::default(), Vec::new(), 1),
            token_states: None,
        };
        // 5, 2, 5, 6, 7, 2: two tokens a third each, two a sixth each.
        let expected = 2.0 / 3.0 * 3.0_f64.ln() + 1.0 / 3.0 * 6.0_f64.ln();
        assert!((examples.unigram_entropy() - expected).abs() < 1e-9);
    }
}
