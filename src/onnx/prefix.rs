//! `prefix.onnx`: an image's embedding, rewritten as a mixture of remembered captions, becomes
//! the decoder's prefix. The arithmetic is that of `model::projection`.

use super::graph::{Dim, Graph};
use super::proto::DataType;

/// The prefix network's weights as plain arrays, row-major.
pub struct PrefixWeights {
    pub embedding_dim: usize,
    pub hidden_size: usize,
    pub prefix_length: usize,
    /// `[captions, embedding_dim]`, unit length.
    pub memory: Vec<f32>,
    pub temperature: f32,
    /// `[embedding_dim, prefix_length * hidden_size]`
    pub inner_weight: Vec<f32>,
    pub inner_bias: Vec<f32>,
    /// `[prefix_length * hidden_size, prefix_length * hidden_size]`
    pub outer_weight: Vec<f32>,
    pub outer_bias: Vec<f32>,
}

/// Writes `image_embeds` `[batch, embedding_dim]` -> `prefix`
/// `[batch, prefix_length, hidden_size]`, `embedding` `[batch, embedding_dim]` of unit length.
pub fn write(weights: &PrefixWeights) -> Vec<u8> {
    let dim = weights.embedding_dim;
    let width = weights.prefix_length * weights.hidden_size;
    let captions = weights.memory.len() / dim;
    let mut graph = Graph::new("prefix");
    let batch = Dim::Free("batch");
    let image = graph.input("image_embeds", DataType::Float, &[batch, Dim::Fixed(dim)]);
    let embedding = graph.unit_length(&image);

    let memory = graph.weight("memory", &[captions, dim], &weights.memory);
    let columns = graph.transpose(&memory, &[1, 0]);
    let cosines = graph.matmul(&embedding, &columns);
    let temperature = graph.scalar(weights.temperature);
    let scaled = graph.div(&cosines, &temperature);
    let mixture = graph.softmax(&scaled);
    let mixed = graph.matmul(&mixture, &memory);
    let projected = graph.unit_length(&mixed);

    let gain = graph.scalar((dim as f32).sqrt());
    let spread = graph.mul(&projected, &gain);
    let inner_weight = graph.weight("inner.weight", &[dim, width], &weights.inner_weight);
    let inner_bias = graph.weight("inner.bias", &[width], &weights.inner_bias);
    let inner = graph.linear(&spread, &inner_weight, &inner_bias);
    let activated = graph.gelu(&inner);
    let outer_weight = graph.weight("outer.weight", &[width, width], &weights.outer_weight);
    let outer_bias = graph.weight("outer.bias", &[width], &weights.outer_bias);
    let flat = graph.linear(&activated, &outer_weight, &outer_bias);
    let (length, hidden) = (weights.prefix_length, weights.hidden_size);
    let prefix = graph.reshape(&flat, &[-1, length as i64, hidden as i64]);

    graph.output(
        "prefix",
        &prefix,
        DataType::Float,
        &[batch, Dim::Fixed(length), Dim::Fixed(hidden)],
    );
    graph.output("embedding", &embedding, DataType::Float, &[batch, Dim::Fixed(dim)]);
    graph.finish()
}
