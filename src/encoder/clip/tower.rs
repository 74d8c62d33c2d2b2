//! The pre-norm transformer of CLIP's towers (Radford et al. 2021, arXiv:2103.00020), in operators
//! for which ONNX Runtime has a single kernel or a fusion.
//!
//! ONNX Runtime fuses attention only in BERT's post-norm pattern, so the graph uses the operator
//! `Attention` of operator set 23. It fuses `x * sigmoid(1.702 x)` into QuickGelu.

use super::config::{Activation, TransformerConfig};
use super::weights::Checkpoint;
use crate::error::Result;
use crate::onnx::graph::{Attribute, Graph, Precision, Value};

/// How the weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As in the checkpoint.
    Source,
    As(Precision),
}

/// One tower's graph under construction.
pub struct Tower<'a> {
    pub graph: Graph,
    pub checkpoint: &'a Checkpoint,
    pub storage: Storage,
    pub config: &'a TransformerConfig,
    /// Prefix of the weight names, such as `vision_model`.
    pub root: &'static str,
}

impl Tower<'_> {
    /// All layers on `states` `[batch, tokens, hidden]`; `bias` is added to the attention scores
    /// `[batch, heads, tokens, tokens]`.
    pub fn layers(&mut self, states: Value, bias: Option<&str>) -> Result<Value> {
        let mut current = states;
        for index in 0..self.config.num_hidden_layers {
            current = self.layer(&format!("encoder.layers.{index}"), &current, bias)?;
        }
        Ok(current)
    }

    fn layer(&mut self, name: &str, states: &str, bias: Option<&str>) -> Result<Value> {
        let (width, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let normed = self.norm(&format!("{name}.layer_norm1"), states)?;
        let attended = self.attention(&format!("{name}.self_attn"), &normed, bias)?;
        let middle = self.graph.add(states, &attended);
        let middle_normed = self.norm(&format!("{name}.layer_norm2"), &middle)?;
        let inner = self.linear(&format!("{name}.mlp.fc1"), &middle_normed, width, wide)?;
        let activated = self.activate(&inner);
        let outer = self.linear(&format!("{name}.mlp.fc2"), &activated, wide, width)?;
        Ok(self.graph.add(&middle, &outer))
    }

    fn attention(&mut self, name: &str, states: &str, bias: Option<&str>) -> Result<Value> {
        let width = self.config.hidden_size;
        let query = self.linear(&format!("{name}.q_proj"), states, width, width)?;
        let key = self.linear(&format!("{name}.k_proj"), states, width, width)?;
        let value = self.linear(&format!("{name}.v_proj"), states, width, width)?;
        let heads = self.config.num_attention_heads;
        let mixed = self.graph.attention([&query, &key, &value], bias, heads);
        self.linear(&format!("{name}.out_proj"), &mixed, width, width)
    }

    fn activate(&mut self, input: &str) -> Value {
        let graph = &mut self.graph;
        match self.config.hidden_act {
            Activation::QuickGelu => {
                let slope = graph.scalar(1.702);
                let scaled = graph.mul(input, &slope);
                let gate = graph.node("Sigmoid", &[&scaled], &[]);
                graph.mul(input, &gate)
            }
            Activation::Gelu => graph.gelu(input),
            Activation::GeluTanh => {
                graph.node("Gelu", &[input], &[("approximate", Attribute::Text("tanh"))])
            }
        }
    }

    /// Layer normalisation with the weights `name` of this tower.
    pub fn norm(&mut self, name: &str, input: &str) -> Result<Value> {
        let width = self.config.hidden_size;
        let scale = self.weight(&format!("{}.{name}.weight", self.root), &[width])?;
        let bias = self.weight(&format!("{}.{name}.bias", self.root), &[width])?;
        Ok(self.graph.layer_norm(input, &scale, &bias, self.config.layer_norm_eps))
    }

    fn linear(&mut self, name: &str, input: &str, inputs: usize, outputs: usize) -> Result<Value> {
        let weight = self.matrix(&format!("{}.{name}.weight", self.root), inputs, outputs)?;
        let bias = self.weight(&format!("{}.{name}.bias", self.root), &[outputs])?;
        Ok(self.graph.linear(input, &weight, &bias))
    }

    /// Projects `input` to the joint embedding space with the matrix `name`, without bias.
    pub fn project(&mut self, name: &str, input: &str, outputs: usize) -> Result<Value> {
        let weight = self.matrix(&format!("{name}.weight"), self.config.hidden_size, outputs)?;
        Ok(self.graph.matmul(input, &weight))
    }

    /// The weight `name`, by its full name in the checkpoint.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Value> {
        self.load_weight(name, shape, false)
    }

    /// The transposed weight of a linear layer, which PyTorch stores as `[outputs, inputs]`.
    fn matrix(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Value> {
        self.load_weight(name, &[outputs, inputs], true)
    }

    fn load_weight(&mut self, name: &str, shape: &[usize], transpose: bool) -> Result<Value> {
        let (read, source) = self.checkpoint.read(name, shape)?;
        let precision = match self.storage {
            Storage::Source => source,
            Storage::As(precision) => precision,
        };
        let limit = half::f16::MAX.to_f32();
        if precision == Precision::Half
            && let Some(value) = read.data.iter().find(|value| value.abs() > limit)
        {
            return Err(self
                .checkpoint
                .wrong("a weight exceeds the range of fp16; use --dtype fp32", name)
                .with_context("value", value)
                .with_context("allowed", format!("-{limit} to {limit}")));
        }
        let tensor = if transpose { read.transposed() } else { read };
        Ok(self.graph.weight_as(name, &tensor.shape, &tensor.data, precision))
    }
}
