//! Local features: objects in an image, in addition to its global embedding.
//!
//! Learned queries attend to a set of local embeddings, one query per prefix token; a gate scales
//! the result, which is added to the prefix (after MacCap, Qiu et al. 2024, arXiv:2401.02347, which
//! uses patch embeddings beside the global embedding). In training the local embeddings are a
//! caption's nouns or token states with noise; at inference they come from the image's patches
//! (`onnx::prefix`).

use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Bool, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::shape::Shape;

/// The source of local embeddings in training.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LocalSource {
    /// The embeddings of the caption's nouns.
    Nouns,
    /// The text tower's states of the caption's tokens.
    Tokens,
}

/// The `[local]` table of the settings.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct LocalSettings {
    pub enabled: bool,
    pub source: LocalSource,
    pub items: usize,
    pub sigma: f32,
    pub dropout: f32,
    pub swap: f32,
    pub distractors: usize,
    pub empty: f32,
    pub nouns: usize,
    pub noun_count: usize,
    pub temperature: f32,
}

/// Local embeddings of a batch.
#[derive(Clone, Debug)]
pub struct LocalFeatures {
    /// `[batch, items, dim]`
    pub embeddings: Tensor<3>,
    /// `[batch, items]`, true for padding.
    pub padding_mask: Tensor<2, Bool>,
}

/// The queries, their cross-attention to local embeddings, and the gate.
#[derive(Module, Debug)]
pub struct LocalModule {
    /// `[prefix_length, hidden]`
    pub queries: Param<Tensor<2>>,
    /// Added to the queries: projection of the global prefix.
    pub query: Linear,
    /// `[dim, 2 * hidden]`: key and value of a local embedding.
    pub key_value: Linear,
    /// `[1, 2 * hidden]`: the null key and value, which can always be attended to.
    pub nothing: Param<Tensor<2>>,
    pub output: Linear,
    /// From a prefix token and its attention output, concatenated.
    pub gate: Linear,
    heads: usize,
}

impl LocalModule {
    pub fn new(shape: &Shape, embedding_dim: usize, device: &Device) -> Self {
        let width = shape.hidden_size;
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        Self {
            queries: Initializer::Normal { mean: 0.0, std: 1.0 }
                .init([shape.prefix_length, width], device),
            query: linear(width, width),
            key_value: linear(embedding_dim, 2 * width),
            nothing: small.init([1, 2 * width], device),
            output: linear(width, width),
            gate: linear(2 * width, width),
            heads: shape.num_attention_heads,
        }
    }

    /// Adds the gated attention output to `prefix` `[batch, prefix_length, hidden]`.
    pub fn fuse(&self, prefix: Tensor<3>, features: &LocalFeatures) -> Tensor<3> {
        let attended = self.attend(prefix.clone(), features);
        let gate =
            sigmoid(self.gate.forward(Tensor::cat(vec![prefix.clone(), attended.clone()], 2)));
        prefix + gate * attended
    }

    fn attend(&self, prefix: Tensor<3>, features: &LocalFeatures) -> Tensor<3> {
        let [batch, items, dim] = features.embeddings.dims();
        let [_, length, width] = prefix.dims();
        let size = width / self.heads;
        let device = prefix.device();
        // Scales the entries of unit vectors to unit variance.
        let scaled = features.embeddings.clone().mul_scalar((dim as f32).sqrt());
        let nothing = self.nothing.val().unsqueeze::<3>().expand([batch, 1, 2 * width]);
        let key_value = Tensor::cat(vec![nothing, self.key_value.forward(scaled)], 1);
        let heads = |states: Tensor<3>, count: usize| {
            states.reshape([batch, count, self.heads, size]).swap_dims(1, 2)
        };
        let query = self.query.forward(prefix) + self.queries.val().unsqueeze::<3>();
        let keys = heads(key_value.clone().narrow(2, 0, width), items + 1);
        let values = heads(key_value.narrow(2, width, width), items + 1);
        let scores =
            heads(query, length).matmul(keys.swap_dims(2, 3)).div_scalar((size as f32).sqrt());
        let present = Tensor::<2, Bool>::full([batch, 1], false, &device);
        let padding_mask = Tensor::cat(vec![present, features.padding_mask.clone()], 1);
        let mask = padding_mask.reshape([batch, 1, 1, items + 1]).expand([
            batch,
            self.heads,
            length,
            items + 1,
        ]);
        let attention = softmax(scores.mask_fill(mask, -1e9), 3);
        let mixed = attention.matmul(values).swap_dims(1, 2).reshape([batch, length, width]);
        self.output.forward(mixed)
    }
}
