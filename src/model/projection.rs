//! Projection of embeddings onto a memory of captions, and the map to prefix tokens.
//!
//! The softmax-weighted sum over a memory of caption embeddings lies in the space of captions for
//! either modality (DeCap, Li et al. 2023, arXiv:2303.03032). Training also projects the noised
//! embeddings, so that training and inference see the same distribution. A learned map turns the
//! result, optionally concatenated with the embedding itself, into the decoder's prefix.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::shape::Shape;

/// How the memory is built from the corpus's embeddings.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// A random sample of captions.
    Sampled,
    /// The centres of a spherical k-means.
    Clustered,
}

/// The `[projection]` table of the settings.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ProjectionSettings {
    pub enabled: bool,
    pub in_training: bool,
    pub memory: MemoryKind,
    pub memory_size: usize,
    pub temperature: f32,
    pub image_temperature: f32,
    pub keep_embedding: bool,
}

/// Projects each row of `embeddings` `[batch, dim]` onto a unit-length mixture of the rows of
/// `memory` `[captions, dim]`. A lower temperature mixes fewer captions.
pub fn project(embeddings: Tensor<2>, memory: &Tensor<2>, temperature: f32) -> Tensor<2> {
    let cosines = l2_normalize(embeddings).matmul(memory.clone().transpose());
    let weights = softmax(cosines.div_scalar(temperature), 1);
    l2_normalize(weights.matmul(memory.clone()))
}

/// Scales each row to unit length.
pub fn l2_normalize(rows: Tensor<2>) -> Tensor<2> {
    let lengths = rows.clone().square().sum_dim(1).sqrt().add_scalar(1e-12);
    rows.div(lengths)
}

/// The learned map from an embedding to the decoder's prefix tokens.
#[derive(Module, Debug)]
pub struct PrefixNetwork {
    pub inner: Linear,
    pub outer: Linear,
    length: usize,
    hidden_size: usize,
}

impl PrefixNetwork {
    /// The input is `inputs` concatenated embeddings of width `embedding_dim`.
    pub fn new(shape: &Shape, embedding_dim: usize, inputs: usize, device: &Device) -> Self {
        let width = shape.prefix_length * shape.hidden_size;
        Self {
            inner: LinearConfig::new(inputs * embedding_dim, width).init(device),
            outer: LinearConfig::new(width, width).init(device),
            length: shape.prefix_length,
            hidden_size: shape.hidden_size,
        }
    }

    /// Unit-length `embeddings`, each `[batch, embedding_dim]`
    /// -> `[batch, prefix_length, hidden_size]`.
    pub fn forward(&self, embeddings: Vec<Tensor<2>>) -> Tensor<3> {
        let dim = embeddings.first().map_or(1, |first| first.dims()[1]);
        let joined = Tensor::cat(embeddings, 1);
        let [batch, _] = joined.dims();
        // Scales the entries of unit vectors to unit variance.
        let scaled = joined.mul_scalar((dim as f32).sqrt());
        let flat = self.outer.forward(gelu(self.inner.forward(scaled)));
        flat.reshape([batch, self.length, self.hidden_size])
    }
}
