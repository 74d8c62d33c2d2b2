//! `prefix.onnx`: maps an image's embeddings to the decoder's prefix. Computes the same as
//! [`crate::model::projection`] and [`crate::model::local`].
//!
//! The local embeddings are the nouns with the largest shares over all patches, each patch being a
//! softmax mixture of nouns. If training used token states instead of nouns, they are the patches
//! nearest to the image embedding.

use super::decoder::Linear;
use super::graph::{Attribute, Dim, Graph, Value};
use super::proto::DataType;

/// The weights as plain arrays, row-major.
pub struct PrefixWeights {
    pub embedding_dim: usize,
    pub hidden_size: usize,
    pub prefix_length: usize,
    pub alignment: Option<Alignment>,
    pub projection: Option<Projection>,
    /// Input: the projected embedding, the embedding, or both concatenated.
    pub inner: Linear,
    pub outer: Linear,
    pub local: Option<Local>,
}

/// Modality alignment of unit-length image embeddings: `scale * v + shift`.
#[derive(Clone, Debug)]
pub struct Alignment {
    /// `[embedding_dim]`
    pub scale: Vec<f32>,
    /// `[embedding_dim]`
    pub shift: Vec<f32>,
}

pub struct Projection {
    /// `[captions, embedding_dim]`, unit length.
    pub memory: Vec<f32>,
    pub temperature: f32,
    /// Whether `inner` also reads the embedding.
    pub keep_embedding: bool,
}

/// The local module.
pub struct Local {
    pub items: usize,
    /// Patch embeddings per image.
    pub patches: usize,
    /// Nouns for reading patches; None uses the patch embeddings themselves.
    pub nouns: Option<NounTable>,
    pub heads: usize,
    /// `[prefix_length, hidden_size]`
    pub queries: Vec<f32>,
    pub query: Linear,
    pub key_value: Linear,
    /// `[1, 2 * hidden_size]`
    pub nothing: Vec<f32>,
    pub output: Linear,
    pub gate: Linear,
}

pub struct NounTable {
    /// `[nouns, embedding_dim]`, unit length.
    pub embeddings: Vec<f32>,
    pub temperature: f32,
}

const BATCH: Dim = Dim::Free("batch");

/// Writes `image_embeds` `[batch, embedding_dim]`, and with a local module `patch_embeds`
/// `[batch, patches, embedding_dim]`, -> `prefix` `[batch, prefix_length, hidden_size]` and
/// `embedding` `[batch, embedding_dim]` of unit length; with a local module also
/// `local_attention` `[batch, prefix_length, patches]`, the attention of each query to patches.
pub fn write(weights: &PrefixWeights) -> Vec<u8> {
    let dim = weights.embedding_dim;
    let (length, hidden) = (weights.prefix_length, weights.hidden_size);
    let mut graph = Graph::new("prefix");
    let image = graph.input("image_embeds", DataType::Float, &[BATCH, Dim::Fixed(dim)]);
    let embedding = graph.l2_normalize(&image);
    let aligned = match &weights.alignment {
        Some(alignment) => align(&mut graph, alignment, &embedding),
        None => embedding.clone(),
    };
    let read = match &weights.projection {
        Some(projection) => project(&mut graph, projection, dim, &aligned),
        None => aligned.clone(),
    };
    let mut prefix = prefix_tokens(&mut graph, weights, &read);
    if let Some(local) = &weights.local {
        let shape = [BATCH, Dim::Fixed(local.patches), Dim::Fixed(dim)];
        let patches = graph.input("patch_embeds", DataType::Float, &shape);
        let features = local_features(&mut graph, local, dim, &patches, &embedding);
        let fused = fuse(&mut graph, weights, local, &prefix, &features);
        prefix = fused.prefix;
        graph.output(
            "local_attention",
            &fused.attention,
            DataType::Float,
            &[BATCH, Dim::Fixed(length), Dim::Fixed(local.patches)],
        );
    }
    let shape = [BATCH, Dim::Fixed(length), Dim::Fixed(hidden)];
    graph.output("prefix", &prefix, DataType::Float, &shape);
    graph.output("embedding", &embedding, DataType::Float, &[BATCH, Dim::Fixed(dim)]);
    graph.finish()
}

fn align(graph: &mut Graph, alignment: &Alignment, embedding: &str) -> Value {
    let dim = alignment.scale.len();
    let scale = graph.floats(&[dim], &alignment.scale);
    let shift = graph.floats(&[dim], &alignment.shift);
    let scaled = graph.mul(embedding, &scale);
    let moved = graph.add(&scaled, &shift);
    graph.l2_normalize(&moved)
}

fn project(graph: &mut Graph, projection: &Projection, dim: usize, embedding: &str) -> Value {
    let captions = projection.memory.len() / dim;
    let memory = graph.weight("memory", &[captions, dim], &projection.memory);
    let mixture = mixture(graph, embedding, &memory, projection.temperature);
    let mixed = graph.matmul(&mixture, &memory);
    let projected = graph.l2_normalize(&mixed);
    if projection.keep_embedding {
        return graph.concat(&[&projected, embedding], 1);
    }
    projected
}

/// Softmax weights `[.., rows]` of the rows of `bank` `[rows, dim]` for `embeddings` `[.., dim]`.
fn mixture(graph: &mut Graph, embeddings: &str, bank: &str, temperature: f32) -> Value {
    let columns = graph.transpose(bank, &[1, 0]);
    let cosines = graph.matmul(embeddings, &columns);
    let temperature = graph.scalar(temperature);
    let scaled = graph.div(&cosines, &temperature);
    graph.softmax(&scaled)
}

fn prefix_tokens(graph: &mut Graph, weights: &PrefixWeights, read: &str) -> Value {
    let gain = graph.scalar((weights.embedding_dim as f32).sqrt());
    let scaled = graph.mul(read, &gain);
    let inner = linear(graph, "inner", &weights.inner, &scaled);
    let activated = graph.gelu(&inner);
    let flat = linear(graph, "outer", &weights.outer, &activated);
    let (length, hidden) = (weights.prefix_length, weights.hidden_size);
    graph.reshape(&flat, &[-1, length as i64, hidden as i64])
}

fn linear(graph: &mut Graph, name: &str, layer: &Linear, input: &str) -> Value {
    let outputs = layer.bias.len();
    let inputs = layer.weight.len() / outputs;
    let weight = graph.weight(&format!("{name}.weight"), &[inputs, outputs], &layer.weight);
    let bias = graph.weight(&format!("{name}.bias"), &[outputs], &layer.bias);
    graph.linear(input, &weight, &bias)
}

/// The embeddings that the local queries attend to.
struct LocalFeatures {
    /// `[batch, items, dim]`, unit length.
    embeddings: Value,
    /// `[batch, items, patches]`: the patches of each embedding; rows sum to 1.
    patch_weights: Value,
}

fn local_features(
    graph: &mut Graph,
    local: &Local,
    dim: usize,
    patches: &str,
    whole: &str,
) -> LocalFeatures {
    let units = graph.l2_normalize(patches);
    match &local.nouns {
        Some(table) => top_nouns(graph, local, table, dim, &units),
        None => nearest_patches(graph, local, &units, whole),
    }
}

fn top_nouns(
    graph: &mut Graph,
    local: &Local,
    table: &NounTable,
    dim: usize,
    patches: &str,
) -> LocalFeatures {
    let count = table.embeddings.len() / dim;
    let bank = graph.weight("nouns", &[count, dim], &table.embeddings);
    let likely = mixture(graph, patches, &bank, table.temperature); // [batch, patches, nouns]
    let by_noun = graph.transpose(&likely, &[0, 2, 1]);
    let across = graph.ints(&[2]);
    let share = graph.node("ReduceMean", &[&by_noun, &across], &[("keepdims", Attribute::Int(0))]);
    let chosen = top_k(graph, &share, local.items.min(count));
    let embeddings = graph.gather(&bank, &chosen, 0);
    let maps = gather_rows(graph, &by_noun, &chosen, local.patches);
    let sums = graph.node("ReduceSum", &[&maps, &across], &[]);
    let patch_weights = graph.div(&maps, &sums);
    LocalFeatures { embeddings, patch_weights }
}

fn nearest_patches(graph: &mut Graph, local: &Local, patches: &str, whole: &str) -> LocalFeatures {
    let column = graph.unsqueeze(whole, &[2]);
    let cosines = graph.matmul(patches, &column);
    let flat = graph.squeeze(&cosines, &[2]);
    let chosen = top_k(graph, &flat, local.items.min(local.patches));
    let depth = graph.int(local.patches as i64);
    let values = graph.floats(&[2], &[0.0, 1.0]);
    let patch_weights = graph.node("OneHot", &[&chosen, &depth, &values], &[]);
    let embeddings = graph.matmul(&patch_weights, patches);
    LocalFeatures { embeddings, patch_weights }
}

/// Indices of the `count` largest entries of each row of `scores`.
fn top_k(graph: &mut Graph, scores: &str, count: usize) -> Value {
    let count = graph.ints(&[count as i64]);
    let [_, indices] = graph.node_multi("TopK", &[scores, &count], &[("axis", Attribute::Int(-1))]);
    indices
}

/// Rows of `table` `[batch, rows, width]` at `indices` `[batch, count]`: `[batch, count, width]`.
fn gather_rows(graph: &mut Graph, table: &str, indices: &str, width: usize) -> Value {
    let column = graph.unsqueeze(indices, &[2]);
    let repeat = graph.ints(&[1, 1, width as i64]);
    let tiled = graph.node("Tile", &[&column, &repeat], &[]);
    graph.node("GatherElements", &[table, &tiled], &[("axis", Attribute::Int(1))])
}

struct Fused {
    /// `[batch, prefix_length, hidden]`
    prefix: Value,
    /// `[batch, prefix_length, patches]`
    attention: Value,
}

fn fuse(
    graph: &mut Graph,
    weights: &PrefixWeights,
    local: &Local,
    prefix: &str,
    features: &LocalFeatures,
) -> Fused {
    let (length, hidden) = (weights.prefix_length as i64, weights.hidden_size as i64);
    let gain = graph.scalar((weights.embedding_dim as f32).sqrt());
    let scaled = graph.mul(&features.embeddings, &gain);
    let key_values = linear(graph, "local.key_value", &local.key_value, &scaled);
    let nothing = graph.weight("local.nothing", &[1, 1, 2 * hidden as usize], &local.nothing);
    let batch = graph.size_of(prefix, 0);
    let rest = graph.ints(&[1, 2 * hidden]);
    let shape = graph.concat(&[&batch, &rest], 0);
    let null_rows = graph.node("Expand", &[&nothing, &shape], &[]);
    let all = graph.concat(&[&null_rows, &key_values], 1); // [batch, 1 + items, 2 * hidden]

    let query_from_prefix = linear(graph, "local.query", &local.query, prefix);
    let queries =
        graph.weight("local.queries", &[length as usize, hidden as usize], &local.queries);
    let query = graph.add(&query_from_prefix, &queries);
    let heads = local.heads as i64;
    let size = hidden / heads;
    let split = graph.ints(&[hidden, hidden]);
    let [keys, values] = graph.node_multi("Split", &[&all, &split], &[("axis", Attribute::Int(2))]);
    // Not the operator `Attention`, which can't output its weights on CUDA.
    let mut by_head = |states: &str, order: &[i64]| {
        let apart = graph.reshape(states, &[0, -1, heads, size]);
        graph.transpose(&apart, order)
    };
    let (query, keys, values) = (
        by_head(&query, &[0, 2, 1, 3]),
        by_head(&keys, &[0, 2, 3, 1]),
        by_head(&values, &[0, 2, 1, 3]),
    );
    let products = graph.matmul(&query, &keys);
    let root = graph.scalar((size as f32).sqrt());
    let scores = graph.div(&products, &root);
    let attention = graph.softmax(&scores); // [batch, heads, length, 1 + items]
    let mixed = graph.matmul(&attention, &values);
    let in_order = graph.transpose(&mixed, &[0, 2, 1, 3]);
    let joined = graph.reshape(&in_order, &[0, length, hidden]);
    let finding = linear(graph, "local.output", &local.output, &joined);

    let both = graph.concat(&[prefix, &finding], 2);
    let logits = linear(graph, "local.gate", &local.gate, &both);
    let gate = graph.node("Sigmoid", &[&logits], &[]);
    let added = graph.mul(&gate, &finding);
    Fused {
        prefix: graph.add(prefix, &added),
        attention: patch_attention(graph, &attention, features),
    }
}

/// The queries' attention to patches, mean over heads, without the share of the null key.
fn patch_attention(graph: &mut Graph, attention: &str, features: &LocalFeatures) -> Value {
    let heads = graph.ints(&[1]);
    let mean = graph.node("ReduceMean", &[attention, &heads], &[("keepdims", Attribute::Int(0))]);
    let (from, to, axis) = (graph.ints(&[1]), graph.ints(&[i64::MAX]), graph.ints(&[2]));
    let item_attention = graph.node("Slice", &[&mean, &from, &to, &axis], &[]);
    graph.matmul(&item_attention, &features.patch_weights)
}
