//! CLIP's text tower: a causal transformer. The state of the end token is the text embedding; the
//! final layer norm and the projection also map all tokens to the joint embedding space.

use super::config::{ClipConfig, Pooling};
use super::tower::{Storage, Tower};
use super::weights::Checkpoint;
use crate::error::Result;
use crate::onnx::graph::{Attribute, Dim, Graph, Value};
use crate::onnx::proto::{DataType, ModelProto};

/// Attention bias of masked positions.
const MASKED: f32 = -1e9;

/// `input_ids`, `attention_mask` `[batch, tokens]` -> `text_embeds` `[batch, width]`, not of unit
/// length, `token_embeds` `[batch, tokens, width]`.
///
/// # Errors
/// `ErrorKind::Config` with the missing or misshapen weight.
pub fn write(checkpoint: &Checkpoint, config: &ClipConfig, storage: Storage) -> Result<ModelProto> {
    let text = &config.text;
    let (width, longest) = (text.transformer.hidden_size, text.max_position_embeddings);
    let tokens = [Dim::Free("batch"), Dim::Free("tokens")];
    let mut graph = Graph::new("text");
    let input_ids = graph.input("input_ids", DataType::Int64, &tokens);
    let attention_mask = graph.input("attention_mask", DataType::Int64, &tokens);
    let length = graph.size_of(&input_ids, 1);
    let bias = attention_bias(&mut graph, &attention_mask, &length, longest);
    let config_of = &text.transformer;
    let mut tower = Tower { graph, checkpoint, storage, config: config_of, root: "text_model" };

    let words =
        tower.weight("text_model.embeddings.token_embedding.weight", &[text.vocab_size, width])?;
    let positions =
        tower.weight("text_model.embeddings.position_embedding.weight", &[longest, width])?;
    let graph = &mut tower.graph;
    let word = graph.gather(&words, &input_ids, 0);
    let zero = graph.ints(&[0]);
    let position = graph.node("Slice", &[&positions, &zero, &length, &zero], &[]);
    let placed = graph.add(&word, &position);

    let states = tower.layers(placed, Some(&bias))?;
    let finished = tower.norm("final_layer_norm", &states)?;
    let token_embeds = tower.project("text_projection", &finished, config.projection_dim)?;

    let mut graph = tower.graph;
    let pooled = pooled_position(&mut graph, &input_ids, text.pooling);
    let indices = graph.unsqueeze(&pooled, &[1]);
    let text_embeds =
        graph.node("GatherND", &[&token_embeds, &indices], &[("batch_dims", Attribute::Int(1))]);
    let [batch, free] = tokens;
    let dim = Dim::Fixed(config.projection_dim);
    graph.output("text_embeds", &text_embeds, DataType::Float, &[batch, dim]);
    graph.output("token_embeds", &token_embeds, DataType::Float, &[batch, free, dim]);
    Ok(graph.model())
}

/// The attention bias `[batch, 1, tokens, tokens]`: 0, and a large negative number for later tokens
/// and padding.
fn attention_bias(graph: &mut Graph, mask: &str, length: &str, longest: usize) -> Value {
    let later = |index: usize| index % longest > index / longest;
    let table: Vec<f32> =
        (0..longest * longest).map(|index| if later(index) { MASKED } else { 0.0 }).collect();
    let triangle = graph.floats(&[longest, longest], &table);
    let (from, axes) = (graph.ints(&[0, 0]), graph.ints(&[0, 1]));
    let to = graph.concat(&[length, length], 0);
    let causal = graph.node("Slice", &[&triangle, &from, &to, &axes], &[]);
    let kept = graph.cast(mask, DataType::Float);
    let one = graph.scalar(1.0);
    let padding = graph.sub(&one, &kept);
    let penalty = graph.scalar(MASKED);
    let padded = graph.mul(&padding, &penalty);
    let rows = graph.unsqueeze(&padded, &[1, 2]);
    graph.add(&causal, &rows)
}

/// The position of the pooled token, `[batch]`.
fn pooled_position(graph: &mut Graph, input_ids: &str, pooling: Pooling) -> Value {
    let target = match pooling {
        Pooling::FirstOf(id) => {
            let end = graph.int(id);
            graph.node("Equal", &[input_ids, &end], &[])
        }
        Pooling::LargestId => input_ids.to_owned(),
    };
    // As floats, which `ArgMax` supports on every device; ids are exact up to 2^24.
    let numbers = graph.cast(&target, DataType::Float);
    graph.node(
        "ArgMax",
        &[&numbers],
        &[("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(0))],
    )
}
