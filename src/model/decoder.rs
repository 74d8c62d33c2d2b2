//! The decoder: a causal transformer (Vaswani et al. 2017) over the bundle's own vocabulary,
//! with pre-layer normalisation, learned positions and tied token embeddings (GPT-2).

use burn::module::{Module, Param};
use burn::nn::{
    Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig,
};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Bool, Device, Int, Tensor};

use super::shape::Shape;

/// Epsilon of every layer normalisation.
pub const EPSILON: f64 = 1e-5;

#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`; its transpose gives the logits.
    pub tokens: Embedding,
    /// `[prefix + max_length, hidden]`
    pub positions: Param<Tensor<2>>,
    pub blocks: Vec<Block>,
    pub norm: LayerNorm,
}

/// One pre-norm layer: self-attention and a feed-forward network with residual connections.
#[derive(Module, Debug)]
pub struct Block {
    pub attention_norm: LayerNorm,
    /// `[hidden, 3 * hidden]`: query, key, value.
    pub query_key_value: Linear,
    pub attention_output: Linear,
    pub feed_forward_norm: LayerNorm,
    pub expand: Linear,
    pub contract: Linear,
    heads: usize,
}

impl Decoder {
    pub fn new(shape: &Shape, vocab_size: usize, device: &Device) -> Self {
        let width = shape.hidden_size;
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let length = shape.prefix_length + shape.max_length;
        Self {
            tokens: EmbeddingConfig::new(vocab_size, width)
                .with_initializer(small.clone())
                .init(device),
            positions: small.init([length, width], device),
            blocks: (0..shape.num_hidden_layers).map(|_| Block::new(shape, device)).collect(),
            norm: LayerNormConfig::new(width).with_epsilon(EPSILON).init(device),
        }
    }

    /// Logits after each token: prefix `[batch, prefix, hidden]`, tokens `[batch, tokens]`
    /// -> `[batch, tokens, vocab]`.
    pub fn forward(&self, prefix: Tensor<3>, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, prefix_length, width] = prefix.dims();
        let [_, count] = tokens.dims();
        let length = prefix_length + count;
        let device = prefix.device();
        let embedded = self.tokens.forward(tokens);
        let positions = self.positions.val().narrow(0, 0, length).unsqueeze::<3>();
        let mut states = Tensor::cat(vec![prefix, embedded], 1) + positions;
        let causal_mask = Tensor::<2, Bool>::tril_mask([length, length], 0, &device);
        for block in &self.blocks {
            states = block.forward(states, causal_mask.clone());
        }
        let captions = states.narrow(1, prefix_length, count);
        let normed = self.norm.forward(captions).reshape([batch * count, width]);
        let logits = normed.matmul(self.tokens.weight.val().transpose());
        let [_, vocab] = logits.dims();
        logits.reshape([batch, count, vocab])
    }
}

impl Block {
    fn new(shape: &Shape, device: &Device) -> Self {
        let (width, wide) = (shape.hidden_size, shape.intermediate_size);
        let norm = || LayerNormConfig::new(width).with_epsilon(EPSILON).init(device);
        let linear = |inputs, outputs| {
            LinearConfig::new(inputs, outputs)
                .with_initializer(Initializer::Normal { mean: 0.0, std: 0.02 })
                .init(device)
        };
        Self {
            attention_norm: norm(),
            query_key_value: linear(width, 3 * width),
            attention_output: linear(width, width),
            feed_forward_norm: norm(),
            expand: linear(width, wide),
            contract: linear(wide, width),
            heads: shape.num_attention_heads,
        }
    }

    /// `states` `[batch, length, hidden]`; `causal_mask` `[length, length]` is true for future
    /// positions.
    fn forward(&self, states: Tensor<3>, causal_mask: Tensor<2, Bool>) -> Tensor<3> {
        let attended = self.attend(self.attention_norm.forward(states.clone()), causal_mask);
        let middle = states + attended;
        let normed = self.feed_forward_norm.forward(middle.clone());
        middle + self.contract.forward(gelu(self.expand.forward(normed)))
    }

    fn attend(&self, states: Tensor<3>, causal_mask: Tensor<2, Bool>) -> Tensor<3> {
        let [batch, length, width] = states.dims();
        let size = width / self.heads;
        let joined = self.query_key_value.forward(states);
        let heads = |part: usize| {
            joined
                .clone()
                .narrow(2, part * width, width)
                .reshape([batch, length, self.heads, size])
                .swap_dims(1, 2)
        };
        let scores = heads(0).matmul(heads(1).swap_dims(2, 3)).div_scalar((size as f32).sqrt());
        let mask = causal_mask.unsqueeze::<4>().expand([batch, self.heads, length, length]);
        let attention = softmax(scores.mask_fill(mask, -1e9), 3);
        let mixed = attention.matmul(heads(2)).swap_dims(1, 2).reshape([batch, length, width]);
        self.attention_output.forward(mixed)
    }
}
