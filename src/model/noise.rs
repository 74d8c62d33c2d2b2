//! Noise: training uses `t + e` instead of a caption's embedding `t`.
//!
//! An image embedding is near the embedding of its caption, but not equal to it. Gaussian noise as
//! wide as this modality gap makes the decoder robust to it (CapDec, Nukrai, Mokady and Globerson
//! 2022, arXiv:2211.00575, with variance 0.016 for CLIP). The gap differs between captions, so a
//! small network predicts the scale of each entry. The caption loss alone would drive the scale to
//! zero: a KL term keeps it near a fixed prior, as in a variational autoencoder (Kingma and Welling
//! 2014, arXiv:1312.6114), and a floor bounds it.

use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::activation::{gelu, softplus};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::projection::{l2_normalize, project};

/// The kind of noise on a caption's embedding.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum NoiseKind {
    /// No noise.
    None,
    /// Gaussian noise with a fixed scale (CapDec).
    Fixed,
    /// Moves the embedding by a random share towards the mixture of its nearest nouns, as a
    /// classifier-based encoder would, then adds noise as `Fixed` does.
    Mixture,
    /// Gaussian noise with a predicted scale.
    Learned,
}

/// The `[noise]` table of the settings.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct NoiseSettings {
    pub kind: NoiseKind,
    pub sigma: f32,
    pub floor: f32,
    pub kl_weight: f32,
    pub mixture: f32,
    pub mixture_temperature: f32,
}

/// Random numbers for a batch, drawn by the caller so that steps are reproducible.
#[derive(Clone, Debug)]
pub struct Draws {
    /// Standard normal, `[batch, dim]`.
    pub normal: Tensor<2>,
    /// Uniform from 0 to 1, `[batch, 1]`.
    pub uniform: Tensor<2>,
}

/// Predicts the standard deviation of the noise for every entry of an embedding.
#[derive(Module, Debug)]
pub struct NoiseNetwork {
    inner: Linear,
    outer: Linear,
    sigma: f32,
    floor: f32,
}

impl NoiseNetwork {
    const HIDDEN: usize = 64;

    /// The initial scale is that of the prior, `settings.sigma`.
    pub fn new(settings: &NoiseSettings, embedding_dim: usize, device: &Device) -> Self {
        Self {
            inner: LinearConfig::new(embedding_dim, Self::HIDDEN).init(device),
            outer: LinearConfig::new(Self::HIDDEN, embedding_dim)
                .with_initializer(Initializer::Zeros)
                .init(device),
            sigma: settings.sigma,
            floor: settings.floor,
        }
    }

    /// Standard deviations `[batch, dim]` for `embeddings` `[batch, dim]`, at least
    /// `floor * sigma`.
    pub fn scale(&self, embeddings: Tensor<2>) -> Tensor<2> {
        let [_, dim] = embeddings.dims();
        let scaled = embeddings.mul_scalar((dim as f32).sqrt());
        let logits = self.outer.forward(gelu(self.inner.forward(scaled)));
        let above = softplus(logits, 1.0).div_scalar(std::f32::consts::LN_2);
        above.mul_scalar((1.0 - self.floor) * self.sigma).add_scalar(self.floor * self.sigma)
    }

    /// KL divergence of the predicted Gaussian from the prior, in nats, mean over entries.
    pub fn divergence(&self, scale: Tensor<2>) -> Tensor<1> {
        let ratio = scale.div_scalar(self.sigma);
        let squares = ratio.clone().square().mul_scalar(0.5);
        (squares - ratio.log()).sub_scalar(0.5).mean()
    }
}

/// A batch of noised embeddings.
pub struct Noised {
    /// `[batch, dim]`
    pub embeddings: Tensor<2>,
    /// KL divergence from the prior in nats per entry, if the scale is learned.
    pub divergence: Option<Tensor<1>>,
}

/// Adds noise to unit-length `embeddings` `[batch, dim]`. [`NoiseKind::Mixture`] needs `nouns`
/// `[nouns, dim]`, [`NoiseKind::Learned`] needs `network`.
pub fn apply(
    settings: &NoiseSettings,
    network: Option<&NoiseNetwork>,
    embeddings: Tensor<2>,
    draws: &Draws,
    nouns: Option<&Tensor<2>>,
) -> Noised {
    let fixed = || draws.normal.clone().mul_scalar(settings.sigma);
    match (settings.kind, network, nouns) {
        (NoiseKind::None, _, _) => Noised { embeddings, divergence: None },
        (NoiseKind::Learned, Some(network), _) => {
            let scale = network.scale(embeddings.clone());
            Noised {
                embeddings: embeddings + draws.normal.clone() * scale.clone(),
                divergence: Some(network.divergence(scale)),
            }
        }
        (NoiseKind::Mixture, _, Some(nouns)) => {
            let mixture = project(embeddings.clone(), nouns, settings.mixture_temperature);
            let share = draws.uniform.clone().mul_scalar(settings.mixture);
            let mixed = embeddings.clone() + (mixture - embeddings) * share;
            Noised { embeddings: l2_normalize(mixed) + fixed(), divergence: None }
        }
        _ => Noised { embeddings: embeddings + fixed(), divergence: None },
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    const DIM: usize = 200;

    fn settings(kind: NoiseKind) -> NoiseSettings {
        NoiseSettings {
            kind,
            sigma: 0.5,
            floor: 0.25,
            kl_weight: 0.1,
            mixture: 1.0,
            mixture_temperature: 0.05,
        }
    }

    fn rows(values: Vec<f32>, device: &Device) -> Tensor<2> {
        let count = values.len() / DIM;
        Tensor::from_data(TensorData::new(values, [count, DIM]), device)
    }

    /// Embeddings of unit length and draws for them.
    fn inputs(device: &Device) -> (Tensor<2>, Draws) {
        let values = (0..4 * DIM).map(|index| (index as f32 * 0.7).sin()).collect();
        let normal = rows((0..4 * DIM).map(|index| (index as f32 * 1.3).cos()).collect(), device);
        let uniform = Tensor::from_data(TensorData::new(vec![1.0_f32; 4], [4, 1]), device);
        (l2_normalize(rows(values, device)), Draws { normal, uniform })
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn fixed_noise_has_the_given_scale() {
        let device = Device::flex();
        let (embeddings, draws) = inputs(&device);
        let noised = |kind| {
            values(apply(&settings(kind), None, embeddings.clone(), &draws, None).embeddings)
        };
        let (clean, normal) = (values(embeddings.clone()), values(draws.normal.clone()));
        assert_eq!(noised(NoiseKind::None), clean);
        for ((noisy, clean), normal) in noised(NoiseKind::Fixed).iter().zip(&clean).zip(&normal) {
            assert!((noisy - clean - 0.5 * normal).abs() < 1e-6);
        }
    }

    #[test]
    fn a_mixture_moves_to_the_nearest_noun() {
        let device = Device::flex();
        let (embeddings, mut draws) = inputs(&device);
        draws.normal = draws.normal.zeros_like();
        let opposite = embeddings.clone().narrow(0, 0, 1).neg();
        let nouns = Tensor::cat(vec![embeddings.clone().narrow(0, 1, 1), opposite], 0);
        let moved =
            apply(&settings(NoiseKind::Mixture), None, embeddings.clone(), &draws, Some(&nouns));
        let cosines = values((moved.embeddings * embeddings.narrow(0, 1, 1)).sum_dim(1));
        assert!(cosines[1] > 0.99, "{cosines:?}");
    }

    #[test]
    fn the_learned_scale_starts_at_the_prior_and_has_a_floor() {
        let device = Device::flex();
        let (embeddings, _) = inputs(&device);
        let mut network = NoiseNetwork::new(&settings(NoiseKind::Learned), DIM, &device);
        let first = network.scale(embeddings.clone());
        assert!(network.divergence(first.clone()).into_scalar::<f32>().abs() < 1e-5);
        assert!(values(first).iter().all(|scale| (scale - 0.5).abs() < 1e-5));

        let bias = network.outer.bias.take().map(|bias| bias.map(|bias| bias.sub_scalar(50.0)));
        network.outer.bias = bias;
        let least = network.scale(embeddings);
        assert!(network.divergence(least.clone()).into_scalar::<f32>() > 0.5);
        assert!(values(least).iter().all(|scale| (scale - 0.125).abs() < 1e-5));
    }
}
