//! The sizes of a model.

use serde::{Deserialize, Serialize};

/// Sizes of the model.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the decoder.
    pub hidden_size: usize,
    /// Width of the decoder's feed-forward layers.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Prefix tokens before the caption.
    pub prefix_length: usize,
    /// Maximum caption length in tokens, including the begin and end tokens.
    pub max_length: usize,
}
