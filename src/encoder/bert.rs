//! A BERT text tower (Devlin et al. 2018) with the mean pooling of Sentence-BERT (Reimers and
//! Gurevych 2019), for all-MiniLM-L6-v2.

use serde::Deserialize;

use super::weights::Weights;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::graph::{Dim, Graph, Value};
use crate::onnx::proto::DataType;

/// The fields of BERT's `config.json` that determine the graph.
#[derive(Clone, Debug, Deserialize)]
pub struct BertConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub vocab_size: usize,
    pub layer_norm_eps: f32,
}

/// Writes `input_ids`, `attention_mask` `[batch, tokens]` -> `text_embeds` `[batch, hidden]` of
/// unit length, `token_embeds` `[batch, tokens, hidden]`.
///
/// # Errors
/// `ErrorKind::Bundle` if the heads do not divide the width, or a weight is missing or misshapen.
pub fn text_tower(weights: &Weights, config: &BertConfig) -> Result<Vec<u8>> {
    let heads = config.num_attention_heads;
    if heads == 0 || !config.hidden_size.is_multiple_of(heads) {
        return Err(Error::new(ErrorKind::Bundle, "num_attention_heads must divide hidden_size")
            .with_context("num_attention_heads", heads)
            .with_context("hidden_size", config.hidden_size));
    }
    let mut graph = Graph::new("text");
    let tokens = [Dim::Free("batch"), Dim::Free("tokens")];
    let input_ids = graph.input("input_ids", DataType::Int64, &tokens);
    let attention_mask = graph.input("attention_mask", DataType::Int64, &tokens);
    let mut tower = Tower { graph, weights, config };
    let mask = tower.graph.cast(&attention_mask, DataType::Float);
    let bias = tower.attention_bias(&mask);
    let mut states = tower.embed(&input_ids)?;
    for layer in 0..config.num_hidden_layers {
        states = tower.layer(layer, &states, &bias)?;
    }
    let pooled = tower.mean_pool(&states, &mask);
    let mut graph = tower.graph;
    let (batch, width) = (Dim::Free("batch"), Dim::Fixed(config.hidden_size));
    graph.output("text_embeds", &pooled, DataType::Float, &[batch, width]);
    graph.output("token_embeds", &states, DataType::Float, &[batch, Dim::Free("tokens"), width]);
    Ok(graph.finish())
}

struct Tower<'a> {
    graph: Graph,
    weights: &'a Weights,
    config: &'a BertConfig,
}

impl Tower<'_> {
    /// The attention bias `[batch, 1, 1, tokens]`: 0, and a large negative number for padding.
    fn attention_bias(&mut self, mask: &str) -> Value {
        let graph = &mut self.graph;
        let one = graph.scalar(1.0);
        let padding = graph.sub(&one, mask);
        let penalty = graph.scalar(-1e9);
        let bias = graph.mul(&padding, &penalty);
        graph.unsqueeze(&bias, &[1, 2])
    }

    fn embed(&mut self, input_ids: &str) -> Result<Value> {
        let width = self.config.hidden_size;
        let words = self.matrix("embeddings.word_embeddings", self.config.vocab_size, width)?;
        let positions = self.matrix(
            "embeddings.position_embeddings",
            self.config.max_position_embeddings,
            width,
        )?;
        let types =
            self.matrix("embeddings.token_type_embeddings", self.config.type_vocab_size, width)?;
        let graph = &mut self.graph;
        let word = graph.gather(&words, input_ids, 0);
        let length = graph.size_of(input_ids, 1);
        let zero = graph.ints(&[0]);
        let position = graph.node("Slice", &[&positions, &zero, &length, &zero], &[]);
        let kind = graph.gather(&types, &zero, 0);
        let placed = graph.add(&word, &position);
        let sum = graph.add(&placed, &kind);
        self.norm("embeddings.LayerNorm", &sum)
    }

    fn layer(&mut self, index: usize, states: &str, bias: &str) -> Result<Value> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let (width, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let heads = self.config.num_attention_heads;
        let size = width / heads;
        let query = self.linear(&name("attention.self.query"), states, width, width)?;
        let key = self.linear(&name("attention.self.key"), states, width, width)?;
        let value = self.linear(&name("attention.self.value"), states, width, width)?;
        let graph = &mut self.graph;
        let split = [0, 0, heads as i64, size as i64];
        let query_rows = graph.reshape(&query, &split);
        let query_heads = graph.transpose(&query_rows, &[0, 2, 1, 3]);
        let key_rows = graph.reshape(&key, &split);
        let key_heads = graph.transpose(&key_rows, &[0, 2, 3, 1]);
        let value_rows = graph.reshape(&value, &split);
        let value_heads = graph.transpose(&value_rows, &[0, 2, 1, 3]);
        let products = graph.matmul(&query_heads, &key_heads);
        let scale = graph.scalar(1.0 / (size as f32).sqrt());
        let scaled = graph.mul(&products, &scale);
        let masked = graph.add(&scaled, bias);
        let attention = graph.softmax(&masked);
        let mixed = graph.matmul(&attention, &value_heads);
        let rows = graph.transpose(&mixed, &[0, 2, 1, 3]);
        let joined = graph.reshape(&rows, &[0, 0, width as i64]);
        let attended = self.linear(&name("attention.output.dense"), &joined, width, width)?;
        let residual = self.graph.add(&attended, states);
        let normed = self.norm(&name("attention.output.LayerNorm"), &residual)?;
        let inner = self.linear(&name("intermediate.dense"), &normed, width, wide)?;
        let activated = self.graph.gelu(&inner);
        let outer = self.linear(&name("output.dense"), &activated, wide, width)?;
        let sum = self.graph.add(&outer, &normed);
        self.norm(&name("output.LayerNorm"), &sum)
    }

    /// The mean of the unmasked states, scaled to unit length.
    fn mean_pool(&mut self, states: &str, mask: &str) -> Value {
        let graph = &mut self.graph;
        let row = graph.unsqueeze(mask, &[1]);
        let sum = graph.matmul(&row, states);
        let mean = graph.squeeze(&sum, &[1]);
        graph.l2_normalize(&mean)
    }

    fn linear(&mut self, name: &str, input: &str, inputs: usize, outputs: usize) -> Result<Value> {
        let matrix = self.weights.get(&format!("{name}.weight"), &[outputs, inputs])?.transposed();
        let weight = self.graph.weight(&format!("{name}.weight"), &matrix.shape, &matrix.data);
        let bias = self.vector(&format!("{name}.bias"), outputs)?;
        Ok(self.graph.linear(input, &weight, &bias))
    }

    fn norm(&mut self, name: &str, input: &str) -> Result<Value> {
        let width = self.config.hidden_size;
        let scale = self.vector(&format!("{name}.weight"), width)?;
        let bias = self.vector(&format!("{name}.bias"), width)?;
        Ok(self.graph.layer_norm(input, &scale, &bias, self.config.layer_norm_eps))
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Value> {
        let name = format!("{name}.weight");
        let tensor = self.weights.get(&name, &[rows, columns])?;
        Ok(self.graph.weight(&name, &tensor.shape, &tensor.data))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Value> {
        let tensor = self.weights.get(name, &[length])?;
        Ok(self.graph.weight(name, &tensor.shape, &tensor.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        for heads in [0, 3] {
            let config = BertConfig {
                hidden_size: 32,
                intermediate_size: 64,
                num_hidden_layers: 1,
                num_attention_heads: heads,
                max_position_embeddings: 8,
                type_vocab_size: 1,
                vocab_size: 16,
                layer_norm_eps: 1e-12,
            };
            let error = text_tower(&Weights::new([], "nothing"), &config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Bundle);
            assert!(error.to_string().contains(&format!("num_attention_heads: {heads}")));
        }
    }
}
