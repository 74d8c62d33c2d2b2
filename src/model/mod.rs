//! FusionCap as trained, in burn: what turns a caption's embedding back into the caption.
//!
//! FusionCap (Li Bingnan and Ding Meng 2025) learns from text alone. Training embeds a caption
//! with the encoder's frozen text tower and asks the decoder for the caption; inference puts an
//! image's embedding in the same place. What makes the exchange possible stands in one file each:
//! [`noise`] blurs the text embedding by the width of the gap between the modalities,
//! [`projection`] rewrites either embedding as a mixture of remembered captions and maps it to
//! prefix tokens, [`decoder`] is the language model that reads them. Local features (queries over
//! token states and image patches) will be a fourth file beside these.
//!
//! Knows nothing of corpora, files or ONNX: `train` feeds it and writes it out.

pub mod decoder;
pub mod noise;
pub mod projection;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use decoder::Decoder;
use projection::PrefixNetwork;

/// Sizes of a FusionCap.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the decoder.
    pub hidden_size: usize,
    /// Width inside its feed-forward layers.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Prefix tokens the decoder reads before the caption.
    pub prefix_length: usize,
    /// Longest caption in tokens, begin and end included.
    pub max_length: usize,
}

/// The trainable parts.
#[derive(Module, Debug)]
pub struct FusionCap {
    pub prefix: PrefixNetwork,
    pub decoder: Decoder,
}

impl FusionCap {
    pub fn new(shape: &Shape, embedding_dim: usize, vocab_size: usize, device: &Device) -> Self {
        Self {
            prefix: PrefixNetwork::new(shape, embedding_dim, device),
            decoder: Decoder::new(shape, vocab_size, device),
        }
    }

    /// Logits `[batch, tokens, vocab]` of each next token after `tokens` `[batch, tokens]`, for
    /// captions conditioned on `projected` embeddings `[batch, embedding_dim]`.
    pub fn forward(&self, projected: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
        let prefix = self.prefix.forward(projected);
        self.decoder.forward(prefix, tokens)
    }
}
