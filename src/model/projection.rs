//! Projection: an embedding rewritten as a mixture of remembered captions, then as prefix tokens.
//!
//! Whatever modality an embedding comes from, its softmax-weighted sum over a memory of caption
//! embeddings lies among captions, where the decoder was trained (DeCap, Li et al. 2023,
//! arXiv:2303.03032). It is done to the noised embedding in training too, so that both sides
//! see one distribution. A learned map turns the result, beside the embedding itself if so
//! configured, into the decoder's prefix.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Shape;

/// How the memory is made from the corpus's embeddings.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Captions drawn at random.
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

/// Rewrites each row of `embeddings` `[batch, dim]` as a mixture of the rows of `memory`
/// `[captions, dim]`, scaled to unit length; the lower the temperature, the fewer captions count.
pub fn project(embeddings: Tensor<2>, memory: &Tensor<2>, temperature: f32) -> Tensor<2> {
    let cosines = l2_normalize(embeddings).matmul(memory.clone().transpose());
    let weights = softmax(cosines.div_scalar(temperature), 1);
    l2_normalize(weights.matmul(memory.clone()))
}

/// Each row scaled to unit length.
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
    /// Reads `inputs` embeddings of width `embedding_dim` side by side.
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
        // Entries of a unit vector are small; bring them to unit variance.
        let spread = joined.mul_scalar((dim as f32).sqrt());
        let flat = self.outer.forward(gelu(self.inner.forward(spread)));
        flat.reshape([batch, self.length, self.hidden_size])
    }
}
