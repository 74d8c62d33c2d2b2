//! `decoder.onnx`: one step of beam search, including the key-value cache and the top candidates.
//! Computes the same as `model::decoder`; attention is ONNX's `Attention` operator, a single kernel
//! in ONNX Runtime.
//!
//! `R` rows are `B` images with `W` beams each; `S` positions are cached.
//!
//! ```text
//! prefix         [R, P, hidden]   the prefix in the first step, empty (P = 0) later
//! input_ids      [R, 1]           the begin token, later each beam's last token
//! past           [2 layers, R0, heads, S, size]   keys at 2i, values at 2i + 1
//! parents        [R]              the row of `past` that each row continues
//! beam_scores    [B, W]           cumulative log-probabilities
//! banned_ids     [R, N]           tokens that must not follow, including the padding token
//!   -> scores, tokens, candidate_parents  [B, candidates]  the best continuations, best first
//!   -> present   [2 layers, R, heads, S + P + 1, size]
//! ```

use super::graph::{Attribute, Dim, Graph, Value};
use super::proto::DataType;

/// The decoder's weights as plain arrays, row-major.
pub struct DecoderWeights {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub heads: usize,
    pub epsilon: f32,
    /// Candidates per image and step.
    pub candidates: usize,
    /// `[vocab_size, hidden_size]`
    pub tokens: Vec<f32>,
    /// `[positions, hidden_size]`
    pub positions: Vec<f32>,
    pub layers: Vec<LayerWeights>,
    pub norm: Norm,
}

/// Scale and shift of a layer normalisation, `[hidden_size]` each.
pub struct Norm {
    pub scale: Vec<f32>,
    pub bias: Vec<f32>,
}

/// A linear layer: `[inputs, outputs]` and `[outputs]`.
pub struct Linear {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

pub struct LayerWeights {
    pub attention_norm: Norm,
    pub query_key_value: Linear,
    pub attention_output: Linear,
    pub feed_forward_norm: Norm,
    pub expand: Linear,
    pub contract: Linear,
}

/// Writes the graph.
pub fn write(weights: &DecoderWeights) -> Vec<u8> {
    let mut decoder = DecoderGraph { graph: Graph::new("decoder"), weights };
    decoder.step();
    decoder.graph.finish()
}

struct DecoderGraph<'a> {
    graph: Graph,
    weights: &'a DecoderWeights,
}

impl DecoderGraph<'_> {
    fn step(&mut self) {
        let width = self.weights.hidden_size;
        let (rows, images) = (Dim::Free("rows"), Dim::Free("images"));
        let graph = &mut self.graph;
        let prefix = graph.input(
            "prefix",
            DataType::Float,
            &[rows, Dim::Free("prefix_length"), Dim::Fixed(width)],
        );
        let input_ids = graph.input("input_ids", DataType::Int64, &[rows, Dim::Fixed(1)]);
        let past = graph.input("past", DataType::Float, &self.weights.cache("past_rows", "cached"));
        let parents = graph.input("parents", DataType::Int64, &[rows]);
        let beam_scores =
            graph.input("beam_scores", DataType::Float, &[images, Dim::Free("beams")]);
        let banned = graph.input("banned_ids", DataType::Int64, &[rows, Dim::Free("banned")]);

        let token_table =
            graph.weight("tokens", &[self.weights.vocab_size, width], &self.weights.tokens);
        let embedded = graph.gather(&token_table, &input_ids, 0);
        let fed = graph.concat(&[&prefix, &embedded], 1);
        let cached = graph.gather(&past, &parents, 1);
        let start = graph.size_of(&past, 3);
        let length = graph.size_of(&fed, 1);
        let end = graph.add(&start, &length);
        let mut states = self.add_positions(&fed, &start, &end);
        let mask = self.causal_mask(&start, &length, &end);
        let mut present = Vec::new();
        for index in 0..self.weights.layers.len() {
            let (next, keys, values) = self.layer(index, &states, &cached, &mask);
            states = next;
            present.extend([keys, values]);
        }
        let log_probabilities = self.next_token(&states, &token_table);
        self.candidates(&log_probabilities, &beam_scores, &banned);
        let slices: Vec<Value> =
            present.iter().map(|part| self.graph.unsqueeze(part, &[0])).collect();
        let parts: Vec<&str> = slices.iter().map(String::as_str).collect();
        let cache = self.graph.concat(&parts, 0);
        let shape = self.weights.cache("rows", "length");
        self.graph.output("present", &cache, DataType::Float, &shape);
    }

    /// Adds the position embeddings `start..end`.
    fn add_positions(&mut self, fed: &str, start: &str, end: &str) -> Value {
        let width = self.weights.hidden_size;
        let count = self.weights.positions.len() / width;
        let graph = &mut self.graph;
        let table = graph.weight("positions", &[count, width], &self.weights.positions);
        let axis = graph.ints(&[0]);
        let positions = graph.node("Slice", &[&table, start, end, &axis], &[]);
        graph.add(fed, &positions)
    }

    /// The attention bias `[length, end]`: 0, and a large negative number for future positions.
    fn causal_mask(&mut self, start: &str, length: &str, end: &str) -> Value {
        let graph = &mut self.graph;
        let (zero, one) = (graph.int(0), graph.int(1));
        let first = graph.squeeze(start, &[0]);
        let count = graph.squeeze(length, &[0]);
        let last = graph.squeeze(end, &[0]);
        let fed = graph.node("Range", &[&zero, &count, &one], &[]);
        let placed = graph.add(&fed, &first);
        let rows = graph.unsqueeze(&placed, &[1]);
        let columns = graph.node("Range", &[&zero, &last, &one], &[]);
        let future = graph.node("Greater", &[&columns, &rows], &[]);
        let (blocked, open) = (graph.scalar(-1e9), graph.scalar(0.0));
        graph.node("Where", &[&future, &blocked, &open], &[])
    }

    /// One layer: the new states, and the keys and values including the cached ones.
    fn layer(
        &mut self,
        index: usize,
        states: &str,
        cached: &str,
        mask: &str,
    ) -> (Value, Value, Value) {
        let layer = &self.weights.layers[index];
        let (width, wide) = (self.weights.hidden_size, self.weights.intermediate_size);
        let normed = self.norm(&format!("{index}.attention_norm"), &layer.attention_norm, states);
        let joined = self.linear(
            &format!("{index}.query_key_value"),
            &layer.query_key_value,
            &normed,
            [width, 3 * width],
        );
        let graph = &mut self.graph;
        let axis = [("axis", Attribute::Int(2)), ("num_outputs", Attribute::Int(3))];
        let [query, new_keys, new_values] = graph.node_multi("Split", &[&joined], &axis);
        let mut old = |position: usize| {
            let number = graph.int(position as i64);
            graph.gather(cached, &number, 0)
        };
        let (old_keys, old_values) = (old(2 * index), old(2 * index + 1));
        let [mixed, keys, values] = graph.cached_attention(
            [&query, &new_keys, &new_values],
            mask,
            [&old_keys, &old_values],
            self.weights.heads,
        );
        let attended = self.linear(
            &format!("{index}.attention_output"),
            &layer.attention_output,
            &mixed,
            [width, width],
        );
        let middle = self.graph.add(states, &attended);
        let inner =
            self.norm(&format!("{index}.feed_forward_norm"), &layer.feed_forward_norm, &middle);
        let expanded =
            self.linear(&format!("{index}.expand"), &layer.expand, &inner, [width, wide]);
        let activated = self.graph.gelu(&expanded);
        let contracted =
            self.linear(&format!("{index}.contract"), &layer.contract, &activated, [wide, width]);
        (self.graph.add(&middle, &contracted), keys, values)
    }

    /// Log-probabilities of the next token, `[rows, vocab]`.
    fn next_token(&mut self, states: &str, token_table: &str) -> Value {
        let last = self.graph.int(-1);
        let newest = self.graph.gather(states, &last, 1);
        let normed = self.norm("norm", &self.weights.norm, &newest);
        let columns = self.graph.transpose(token_table, &[1, 0]);
        let logits = self.graph.matmul(&normed, &columns);
        self.graph.node("LogSoftmax", &[&logits], &[("axis", Attribute::Int(-1))])
    }

    /// Adds the outputs with the best continuations of each image's beams.
    fn candidates(&mut self, log_probabilities: &str, beam_scores: &str, banned: &str) {
        let vocab = self.weights.vocab_size as i64;
        let graph = &mut self.graph;
        let banned_shape = graph.node("Shape", &[banned], &[]);
        let never = graph.scalar(f32::NEG_INFINITY);
        let bans = graph.node("Expand", &[&never, &banned_shape], &[]);
        let allowed = graph.node(
            "ScatterElements",
            &[log_probabilities, banned, &bans],
            &[("axis", Attribute::Int(1))],
        );
        let beams = graph.node("Shape", &[beam_scores], &[]);
        let each = graph.ints(&[vocab]);
        let by_beam = graph.concat(&[&beams, &each], 0);
        let grouped = graph.node("Reshape", &[&allowed, &by_beam], &[]);
        let so_far = graph.unsqueeze(beam_scores, &[2]);
        let total = graph.add(&grouped, &so_far);
        let images = graph.size_of(beam_scores, 0);
        let rest = graph.ints(&[-1]);
        let by_image = graph.concat(&[&images, &rest], 0);
        let flat = graph.node("Reshape", &[&total, &by_image], &[]);
        let count = graph.ints(&[self.weights.candidates as i64]);
        let [scores, positions] =
            graph.node_multi("TopK", &[&flat, &count], &[("axis", Attribute::Int(-1))]);
        let size = graph.int(vocab);
        let parents = graph.div(&positions, &size);
        let tokens = graph.node("Mod", &[&positions, &size], &[]);
        let shape = [Dim::Free("images"), Dim::Fixed(self.weights.candidates)];
        graph.output("scores", &scores, DataType::Float, &shape);
        graph.output("tokens", &tokens, DataType::Int64, &shape);
        graph.output("candidate_parents", &parents, DataType::Int64, &shape);
    }

    fn norm(&mut self, name: &str, norm: &Norm, input: &str) -> Value {
        let width = norm.scale.len();
        let scale = self.graph.weight(&format!("{name}.scale"), &[width], &norm.scale);
        let bias = self.graph.weight(&format!("{name}.bias"), &[width], &norm.bias);
        self.graph.layer_norm(input, &scale, &bias, self.weights.epsilon)
    }

    fn linear(&mut self, name: &str, linear: &Linear, input: &str, shape: [usize; 2]) -> Value {
        let weight = self.graph.weight(&format!("{name}.weight"), &shape, &linear.weight);
        let bias = self.graph.weight(&format!("{name}.bias"), &[shape[1]], &linear.bias);
        self.graph.linear(input, &weight, &bias)
    }
}

impl DecoderWeights {
    fn head_size(&self) -> usize {
        self.hidden_size / self.heads
    }

    fn cache(&self, rows: &'static str, length: &'static str) -> [Dim; 5] {
        [
            Dim::Fixed(2 * self.layers.len()),
            Dim::Free(rows),
            Dim::Fixed(self.heads),
            Dim::Free(length),
            Dim::Fixed(self.head_size()),
        ]
    }
}
