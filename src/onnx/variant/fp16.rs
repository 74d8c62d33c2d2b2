//! Converts a graph to 16-bit floats, for GPUs: weights, constants and nearly every operator.
//!
//! Each value exists in up to two formats, fp32 and fp16. Each operator reads the format that it
//! computes in; a single cast converts a value if needed. These stay in fp32:
//!
//! - sums of squares or exponentials, which exceed the range of fp16: norms, and decomposed
//!   normalisations (the operator `LayerNormalization` keeps its statistics in 32 bits);
//! - `LogSoftmax` and everything after it: scores are sums of many small numbers;
//! - operators between fp32 operators;
//! - inputs and outputs, except those that the caller names.

use std::collections::{HashMap, HashSet};

use half::f16;

use super::float_values;
use super::model::{self, attribute, is_op};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{
    AttributeProto, AttributeType, DataType, GraphProto, ModelProto, NodeProto, TensorProto,
    ValueInfoProto,
};
use crate::onnx::subgraph;

/// Constant floats by name.
type Constants = HashMap<String, TensorProto>;

/// Operators that compute in fp32; later ones may use fp16.
const FP32_OPS: [&str; 10] = [
    "LpNormalization",
    "Pow",
    "Sqrt",
    "Exp",
    "Log",
    "Reciprocal",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
];
/// This operator and all that depend on it compute in fp32.
const SCORES_OP: &str = "LogSoftmax";
/// Operators that always compute in fp16, unless they depend on scores.
const FP16_OPS: [&str; 5] = ["MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"];

/// Rewrites the graph; its inputs and outputs in `fp16_io` become 16-bit floats.
///
/// # Errors
/// `ErrorKind::Bundle` with an unsupported operator.
pub fn convert(model: &mut ModelProto, fp16_io: &[&str]) -> Result<()> {
    let Some(graph) = model.graph.take() else { return Ok(()) };
    if !model.functions.is_empty() {
        return Err(Error::new(
            ErrorKind::Bundle,
            "a graph with functions can't be converted to fp16",
        ));
    }
    let floats = float_values::find(&graph)?;
    let constants = constants(&graph);
    let fp32_nodes = find_fp32_nodes(&graph, &floats, &constants);
    let mut rewriter = Rewriter {
        fp16_io: fp16_io.iter().map(|name| name.to_string()).collect(),
        floats,
        constants,
        defined: HashSet::new(),
        nodes: Vec::with_capacity(graph.node.len()),
        initializers: Vec::new(),
    };
    model.graph = Some(rewriter.rewrite(graph, &fp32_nodes));
    Ok(())
}

/// The indices of the nodes that compute in fp32.
fn find_fp32_nodes(
    graph: &GraphProto,
    floats: &HashSet<String>,
    constants: &Constants,
) -> HashSet<usize> {
    let mut scores: HashSet<&str> = HashSet::new();
    let mut fp32_nodes: HashSet<usize> = HashSet::new();
    for (index, node) in graph.node.iter().enumerate() {
        let follows = node.input.iter().any(|name| scores.contains(name.as_str()));
        if is_op(node, SCORES_OP) || follows {
            let outputs = node.output.iter().filter(|name| floats.contains(name.as_str()));
            scores.extend(outputs.map(String::as_str));
            fp32_nodes.insert(index);
        } else if FP32_OPS.iter().any(|op| is_op(node, op)) {
            fp32_nodes.insert(index);
        }
    }
    let flow = DataFlow::new(graph, floats, constants);
    loop {
        let more = flow.between(&fp32_nodes);
        if more.is_empty() {
            return fp32_nodes;
        }
        fp32_nodes.extend(more);
    }
}

/// The producers and consumers of a graph's values.
struct DataFlow<'a> {
    graph: &'a GraphProto,
    floats: &'a HashSet<String>,
    constants: &'a Constants,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> DataFlow<'a> {
    fn new(graph: &'a GraphProto, floats: &'a HashSet<String>, constants: &'a Constants) -> Self {
        let mut producers: HashMap<&str, usize> = HashMap::new();
        let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            producers.extend(node.output.iter().map(|name| (name.as_str(), index)));
            for name in &node.input {
                consumers.entry(name).or_default().push(index);
            }
        }
        Self { graph, floats, constants, producers, consumers }
    }

    /// The nodes not yet in `fp32_nodes` whose float inputs come from such nodes, graph inputs or
    /// constants, and whose float outputs go to such nodes or graph outputs.
    fn between(&self, fp32_nodes: &HashSet<usize>) -> Vec<usize> {
        let nodes = self.graph.node.iter().enumerate();
        let open = nodes.filter(|(index, node)| {
            !fp32_nodes.contains(index) && !FP16_OPS.iter().any(|op| is_op(node, op))
        });
        let between = open.filter(|(_, node)| {
            let mut inputs = node.input.iter().filter(|name| self.floats.contains(*name));
            let mut outputs = node.output.iter().filter(|name| self.floats.contains(*name));
            inputs.all(|name| self.is_produced_in_fp32(name, fp32_nodes))
                && outputs.clone().next().is_some()
                && outputs.all(|name| self.is_consumed_in_fp32(name, fp32_nodes))
        });
        between.map(|(index, _)| index).collect()
    }

    fn is_produced_in_fp32(&self, name: &str, fp32_nodes: &HashSet<usize>) -> bool {
        let producer = self.producers.get(name);
        self.constants.contains_key(name)
            || producer.is_none_or(|producer| fp32_nodes.contains(producer))
    }

    fn is_consumed_in_fp32(&self, name: &str, fp32_nodes: &HashSet<usize>) -> bool {
        let is_output = self.graph.output.iter().any(|output| output.name == name);
        let consumers = self.consumers.get(name).map(Vec::as_slice).unwrap_or_default();
        (is_output || !consumers.is_empty())
            && consumers.iter().all(|consumer| fp32_nodes.contains(consumer))
    }
}

/// The constant floats by name: weights, casts of 16-bit weights, and `Constant` nodes.
fn constants(graph: &GraphProto) -> Constants {
    let stored: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let plain =
        graph.initializer.iter().filter(|tensor| tensor.data_type == DataType::Float as i32);
    let mut found: Constants = plain.map(|tensor| (tensor.name.clone(), tensor.clone())).collect();
    for node in &graph.node {
        let [output] = node.output.as_slice() else { continue };
        let tensor = if is_op(node, "Constant") {
            attribute(node, "value").and_then(|value| value.t.as_ref())
        } else if is_op(node, "Cast") {
            node.input.first().and_then(|name| stored.get(name.as_str()).copied())
        } else {
            None
        };
        if let Some(tensor) = tensor.filter(|tensor| model::floats(tensor).is_some()) {
            found.insert(output.clone(), tensor.clone());
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Fp32,
    Fp16,
}

struct Rewriter {
    fp16_io: HashSet<String>,
    floats: HashSet<String>,
    constants: Constants,
    /// The names that are defined so far, in either format.
    defined: HashSet<String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl Rewriter {
    fn rewrite(&mut self, mut graph: GraphProto, fp32_nodes: &HashSet<usize>) -> GraphProto {
        for value in graph.input.iter_mut().chain(&mut graph.output) {
            if self.fp16_io.contains(&value.name) {
                declare_fp16(value);
            }
        }
        let given = graph.input.iter().map(|input| input.name.clone());
        self.defined.extend(given);
        self.defined.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
        for (index, node) in graph.node.drain(..).enumerate() {
            let format = if fp32_nodes.contains(&index) { Format::Fp32 } else { Format::Fp16 };
            self.add_node(node, format);
        }
        for output in &graph.output {
            if self.floats.contains(&output.name) {
                let is_fp16 = self.fp16_io.contains(&output.name);
                self.value_in(&output.name, if is_fp16 { Format::Fp16 } else { Format::Fp32 });
            }
        }
        graph.node = std::mem::take(&mut self.nodes);
        graph.initializer.append(&mut self.initializers);
        graph.value_info.clear();
        subgraph::prune(&mut graph);
        graph
    }

    /// Adds a node that computes in `format`.
    fn add_node(&mut self, mut node: NodeProto, format: Format) {
        let is_constant = |name: &String| self.constants.contains_key(name);
        if node.output.iter().any(is_constant) || is_op(&node, "Constant") {
            // Unchanged in fp32; `prune` removes it if it is unused.
            self.defined.extend(node.output.iter().cloned());
            self.nodes.push(node);
            return;
        }
        for index in 0..node.input.len() {
            let name = node.input[index].clone();
            if self.floats.contains(&name) {
                // Shapes are the same in both formats.
                let any = is_op(&node, "Shape") || is_op(&node, "Size");
                let full = any && self.defined.contains(&self.name_in(&name, Format::Fp32));
                node.input[index] = self.value_in(&name, if full { Format::Fp32 } else { format });
            }
        }
        let mut makes_floats = false;
        for index in 0..node.output.len() {
            let name = node.output[index].clone();
            if self.floats.contains(&name) {
                makes_floats = true;
                node.output[index] = self.name_in(&name, format);
                self.defined.insert(node.output[index].clone());
            }
        }
        if makes_floats && format == Format::Fp16 {
            convert_attributes(&mut node);
        }
        self.nodes.push(node);
    }

    /// The name of the value `name` in `format`.
    fn name_in(&self, name: &str, format: Format) -> String {
        match (self.fp16_io.contains(name), format) {
            (true, Format::Fp16) | (false, Format::Fp32) => name.into(),
            (true, Format::Fp32) => format!("{name}_fp32"),
            (false, Format::Fp16) => format!("{name}_fp16"),
        }
    }

    /// The value `name` in `format`, defined by a constant or a cast if needed.
    fn value_in(&mut self, name: &str, format: Format) -> String {
        let wanted = self.name_in(name, format);
        if !self.defined.insert(wanted.clone()) {
            return wanted;
        }
        if let Some(tensor) = self.constants.get(name).filter(|_| format == Format::Fp16)
            && let Some(values) = model::floats(tensor)
        {
            let dims = tensor.dims.clone();
            self.initializers.push(model::tensor(
                &wanted,
                DataType::Float16,
                dims,
                to_fp16_bytes(&values),
            ));
            return wanted;
        }
        let (other, to) = match format {
            Format::Fp32 => (self.name_in(name, Format::Fp16), DataType::Float),
            Format::Fp16 => (self.name_in(name, Format::Fp32), DataType::Float16),
        };
        self.nodes.push(NodeProto {
            input: vec![other],
            output: vec![wanted.clone()],
            name: format!("cast_{wanted}"),
            op_type: "Cast".into(),
            attribute: vec![AttributeProto {
                name: "to".into(),
                i: Some(to as i64),
                r#type: AttributeType::Int as i32,
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        });
        wanted
    }
}

/// Raw 16-bit floats; finite values are clamped to the range of fp16.
fn to_fp16_bytes(values: &[f32]) -> Vec<u8> {
    let limit = f16::MAX.to_f32();
    let convert = |value: &f32| match value.is_finite() {
        true => f16::from_f32(value.clamp(-limit, limit)),
        false => f16::from_f32(*value),
    };
    values.iter().flat_map(|value| convert(value).to_le_bytes()).collect()
}

/// Converts float types in attributes: the target of `Cast`, the value of `ConstantOfShape`.
fn convert_attributes(node: &mut NodeProto) {
    if is_op(node, "Cast") {
        for to in node.attribute.iter_mut().filter(|attribute| attribute.name == "to") {
            to.i = Some(DataType::Float16 as i64);
        }
    }
    if is_op(node, "ConstantOfShape") {
        let value = attribute(node, "value").and_then(|value| value.t.as_ref());
        let values = value.and_then(model::floats).unwrap_or_else(|| vec![0.0]);
        let tensor = model::tensor("", DataType::Float16, vec![1], to_fp16_bytes(&values));
        node.attribute = vec![AttributeProto {
            name: "value".into(),
            t: Some(tensor),
            r#type: AttributeType::Tensor as i32,
            ..AttributeProto::default()
        }];
    }
}

fn declare_fp16(value: &mut ValueInfoProto) {
    if let Some(tensor) = value.r#type.as_mut().and_then(|declared| declared.tensor_type.as_mut()) {
        tensor.elem_type = DataType::Float16 as i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{Attribute, Dim, Graph};

    const ROWS: [Dim; 2] = [Dim::Free("rows"), Dim::Fixed(2)];

    fn nodes(model: &ModelProto) -> Vec<String> {
        let graph = model.graph.as_ref().unwrap();
        graph.node.iter().map(|node| node.op_type.clone()).collect()
    }

    fn constant<'a>(model: &'a ModelProto, name: &str) -> &'a TensorProto {
        let graph = model.graph.as_ref().unwrap();
        graph.initializer.iter().find(|tensor| tensor.name == name).unwrap()
    }

    #[test]
    fn products_are_fp16_and_inputs_and_outputs_fp32() {
        let mut graph = Graph::new("test");
        let x = graph.input("x", DataType::Float, &ROWS);
        let weight = graph.weight("w", &[2, 2], &[1.0, -0.5, 0.25, 2.0]);
        let product = graph.matmul(&x, &weight);
        let blocked = graph.floats(&[2], &[-1e9, f32::NEG_INFINITY]);
        let sum = graph.add(&product, &blocked);
        graph.output("y", &sum, DataType::Float, &ROWS);
        let mut model = graph.model();
        convert(&mut model, &[]).unwrap();
        assert_eq!(nodes(&model), ["Cast", "MatMul", "Add", "Identity", "Cast"]);
        let stored = constant(&model, "cast_1_fp16");
        assert_eq!(model::floats(stored).unwrap(), [1.0, -0.5, 0.25, 2.0]);
        let clamped = constant(&model, &format!("{blocked}_fp16"));
        assert_eq!(model::floats(clamped).unwrap(), [-65504.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn scores_and_their_dependents_stay_in_fp32() {
        let mut graph = Graph::new("test");
        let x = graph.input("x", DataType::Float, &ROWS);
        let before = graph.input("before", DataType::Float, &[Dim::Free("rows")]);
        let weight = graph.weight("w", &[2, 2], &[1.0; 4]);
        let product = graph.matmul(&x, &weight);
        let scores = graph.node("LogSoftmax", &[&product], &[("axis", Attribute::Int(-1))]);
        let column = graph.unsqueeze(&before, &[1]);
        let total = graph.add(&scores, &column);
        let count = graph.size_of(&before, 0);
        graph.output("count", &count, DataType::Int64, &[Dim::Fixed(1)]);
        graph.output("y", &total, DataType::Float, &ROWS);
        let mut model = graph.model();
        convert(&mut model, &[]).unwrap();
        assert_eq!(
            nodes(&model),
            [
                "Cast",
                "MatMul",
                "Cast",
                "LogSoftmax",
                "Unsqueeze",
                "Add",
                "Shape",
                "Identity",
                "Identity"
            ]
        );
    }

    #[test]
    fn named_inputs_and_outputs_become_fp16() {
        let mut graph = Graph::new("test");
        let past = graph.input("past", DataType::Float, &ROWS);
        let other = graph.input("x", DataType::Float, &ROWS);
        let joined = graph.concat(&[&past, &other], 0);
        graph.output("present", &joined, DataType::Float, &ROWS);
        let mut model = graph.model();
        convert(&mut model, &["past", "present"]).unwrap();
        assert_eq!(nodes(&model), ["Cast", "Concat", "Identity"]);
        let graph = model.graph.unwrap();
        let kind =
            |value: &ValueInfoProto| value.r#type.clone().unwrap().tensor_type.unwrap().elem_type;
        assert_eq!(kind(&graph.input[0]), DataType::Float16 as i32);
        assert_eq!(kind(&graph.input[1]), DataType::Float as i32);
        assert_eq!(kind(&graph.output[0]), DataType::Float16 as i32);
    }

    #[test]
    fn an_unknown_operator_is_named() {
        let mut graph = Graph::new("test");
        let x = graph.input("x", DataType::Float, &ROWS);
        let y = graph.node("Imagine", &[&x], &[]);
        graph.output("y", &y, DataType::Float, &ROWS);
        let error = convert(&mut graph.model(), &[]).unwrap_err();
        assert!(error.to_string().contains("Imagine"), "{error}");
    }
}
