//! Projection: an embedding rewritten as a mixture of remembered captions, then as prefix tokens.
//!
//! Whatever modality an embedding comes from, its softmax-weighted sum over a memory of caption
//! embeddings lies among captions, where the decoder was trained (DeCap, Li et al. 2023,
//! arXiv:2303.03032). It is done to the noised embedding in training too, so that both sides
//! see one distribution. A learned map turns the result into the decoder's prefix.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Device, Tensor};

use super::Shape;

/// Rewrites each row of `embeddings` `[batch, dim]` as a mixture of the rows of `memory`
/// `[captions, dim]`, scaled to unit length; the lower the temperature, the fewer captions count.
pub fn project(embeddings: Tensor<2>, memory: &Tensor<2>, temperature: f32) -> Tensor<2> {
    let cosines = unit_length(embeddings).matmul(memory.clone().transpose());
    let weights = softmax(cosines.div_scalar(temperature), 1);
    unit_length(weights.matmul(memory.clone()))
}

/// Each row scaled to unit length.
pub fn unit_length(rows: Tensor<2>) -> Tensor<2> {
    let lengths = rows.clone().square().sum_dim(1).sqrt().add_scalar(1e-12);
    rows.div(lengths)
}

/// The learned map from a projected embedding to the decoder's prefix tokens.
#[derive(Module, Debug)]
pub struct PrefixNetwork {
    pub inner: Linear,
    pub outer: Linear,
    length: usize,
    hidden_size: usize,
}

impl PrefixNetwork {
    pub fn new(shape: &Shape, embedding_dim: usize, device: &Device) -> Self {
        let width = shape.prefix_length * shape.hidden_size;
        Self {
            inner: LinearConfig::new(embedding_dim, width).init(device),
            outer: LinearConfig::new(width, width).init(device),
            length: shape.prefix_length,
            hidden_size: shape.hidden_size,
        }
    }

    /// `[batch, dim]` -> `[batch, prefix_length, hidden_size]`.
    pub fn forward(&self, projected: Tensor<2>) -> Tensor<3> {
        let [batch, dim] = projected.dims();
        // Entries of a unit vector are small; bring them to unit variance.
        let scaled = projected.mul_scalar((dim as f32).sqrt());
        let flat = self.outer.forward(gelu(self.inner.forward(scaled)));
        flat.reshape([batch, self.length, self.hidden_size])
    }
}
