//! A builder for ONNX graphs.
//!
//! Values are names; every method that adds a node returns the name of its output. Weights are
//! stored as 16-bit floats, followed by a `Cast` that ONNX Runtime folds when it loads the model:
//! the file has half the size, and the arithmetic is in 32 bits.

use half::{bf16, f16};
use prost::Message;

use super::proto::{
    AttributeProto, AttributeType, DataType, DimensionProto, DimensionValue, GraphProto,
    ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};

const IR_VERSION: i64 = 10;
const OPSET: i64 = 20;
/// The operator set and IR version with `Attention`.
const ATTENTION_OPSET: i64 = 23;
const ATTENTION_IR_VERSION: i64 = 11;

/// The name of a tensor in the graph.
pub type Value = String;

/// One dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub enum Dim {
    Fixed(usize),
    /// Symbolic; equal names are equal sizes.
    Free(&'static str),
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(&'static str),
}

/// The type of a weight in the file; computation is in 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Single,
    Half,
    /// bfloat16.
    Bfloat,
}

/// A graph under construction.
pub struct Graph {
    proto: GraphProto,
    next: usize,
    ir_version: i64,
    opset: i64,
}

impl Graph {
    pub fn new(name: &str) -> Self {
        Self {
            proto: GraphProto { name: name.into(), ..GraphProto::default() },
            next: 0,
            ir_version: IR_VERSION,
            opset: OPSET,
        }
    }

    pub fn input(&mut self, name: &str, data_type: DataType, shape: &[Dim]) -> Value {
        self.proto.input.push(value_info(name, data_type, shape));
        name.into()
    }

    /// Declares `value` as the graph output `name`.
    pub fn output(&mut self, name: &str, value: &str, data_type: DataType, shape: &[Dim]) {
        self.proto.node.push(NodeProto {
            input: vec![value.into()],
            output: vec![name.into()],
            name: format!("output_{name}"),
            op_type: "Identity".into(),
            ..NodeProto::default()
        });
        self.proto.output.push(value_info(name, data_type, shape));
    }

    /// A weight of `shape`, row-major, stored in 16 bits and cast to 32.
    pub fn weight(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Value {
        self.weight_as(name, shape, data, Precision::Half)
    }

    /// A weight of `shape`, row-major, stored in `precision` and cast to 32 bits.
    pub fn weight_as(
        &mut self,
        name: &str,
        shape: &[usize],
        data: &[f32],
        precision: Precision,
    ) -> Value {
        let (suffix, data_type, raw) = match precision {
            Precision::Single => {
                let raw = data.iter().flat_map(|value| value.to_le_bytes()).collect();
                self.initializer(name, DataType::Float, shape, raw);
                return name.into();
            }
            Precision::Half => (
                "f16",
                DataType::Float16,
                data.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            ),
            Precision::Bfloat => (
                "bf16",
                DataType::Bfloat16,
                data.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            ),
        };
        let stored = format!("{name}_{suffix}");
        self.initializer(&stored, data_type, shape, raw);
        self.cast(&stored, DataType::Float)
    }

    /// A 32-bit constant of `shape`, row-major.
    pub fn floats(&mut self, shape: &[usize], data: &[f32]) -> Value {
        let raw = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = self.unique_name("floats");
        self.initializer(&name, DataType::Float, shape, raw);
        name
    }

    pub fn scalar(&mut self, value: f32) -> Value {
        self.floats(&[], &[value])
    }

    /// A constant list of integers, `[n]`.
    pub fn ints(&mut self, data: &[i64]) -> Value {
        let raw = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = self.unique_name("ints");
        self.initializer(&name, DataType::Int64, &[data.len()], raw);
        name
    }

    /// A constant scalar integer.
    pub fn int(&mut self, value: i64) -> Value {
        let name = self.unique_name("int");
        self.initializer(&name, DataType::Int64, &[], value.to_le_bytes().to_vec());
        name
    }

    /// Adds a node with one output.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> Value {
        let output = self.unique_name(&op.to_lowercase());
        self.push(op, inputs, vec![output.clone()], attributes);
        output
    }

    /// Adds a node with several outputs.
    pub fn node_multi<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> [Value; N] {
        let outputs: [Value; N] = std::array::from_fn(|_| self.unique_name(&op.to_lowercase()));
        self.push(op, inputs, outputs.to_vec(), attributes);
        outputs
    }

    pub fn cast(&mut self, value: &str, to: DataType) -> Value {
        self.node("Cast", &[value], &[("to", Attribute::Int(to as i64))])
    }

    pub fn add(&mut self, left: &str, right: &str) -> Value {
        self.node("Add", &[left, right], &[])
    }

    pub fn sub(&mut self, left: &str, right: &str) -> Value {
        self.node("Sub", &[left, right], &[])
    }

    pub fn mul(&mut self, left: &str, right: &str) -> Value {
        self.node("Mul", &[left, right], &[])
    }

    pub fn div(&mut self, left: &str, right: &str) -> Value {
        self.node("Div", &[left, right], &[])
    }

    pub fn matmul(&mut self, left: &str, right: &str) -> Value {
        self.node("MatMul", &[left, right], &[])
    }

    /// `input @ weight + bias`, with `weight` `[inputs, outputs]`.
    pub fn linear(&mut self, input: &str, weight: &str, bias: &str) -> Value {
        let product = self.matmul(input, weight);
        self.add(&product, bias)
    }

    /// Layer normalisation over the last axis.
    pub fn layer_norm(&mut self, input: &str, scale: &str, bias: &str, epsilon: f32) -> Value {
        self.node(
            "LayerNormalization",
            &[input, scale, bias],
            &[("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))],
        )
    }

    /// The exact, erf-based GELU.
    pub fn gelu(&mut self, input: &str) -> Value {
        self.node("Gelu", &[input], &[])
    }

    pub fn softmax(&mut self, input: &str) -> Value {
        self.node("Softmax", &[input], &[("axis", Attribute::Int(-1))])
    }

    /// Scaled dot-product attention of `heads` heads over `query`, `key` and `value`
    /// `[batch, tokens, heads * size]`; `bias` is added to the scores
    /// `[batch, heads, tokens, tokens]`.
    pub fn attention(&mut self, rows: [&str; 3], bias: Option<&str>, heads: usize) -> Value {
        let inputs: Vec<&str> = rows.into_iter().chain(bias).collect();
        let [mixed] = self.attention_node(&inputs, heads);
        mixed
    }

    /// Like [`Self::attention`] with cached keys and values `past` `[batch, heads, cached, size]`.
    /// Returns the output, and the keys and values with the new ones appended. `bias`
    /// `[tokens, cached + tokens]` is added to the scores.
    pub fn cached_attention(
        &mut self,
        rows: [&str; 3],
        bias: &str,
        past: [&str; 2],
        heads: usize,
    ) -> [Value; 3] {
        let inputs: Vec<&str> = rows.into_iter().chain([bias]).chain(past).collect();
        self.attention_node(&inputs, heads)
    }

    fn attention_node<const N: usize>(&mut self, inputs: &[&str], heads: usize) -> [Value; N] {
        (self.ir_version, self.opset) = (ATTENTION_IR_VERSION, ATTENTION_OPSET);
        let heads = Attribute::Int(heads as i64);
        let attributes = [("q_num_heads", heads.clone()), ("kv_num_heads", heads)];
        self.node_multi("Attention", inputs, &attributes)
    }

    pub fn reshape(&mut self, input: &str, shape: &[i64]) -> Value {
        let target = self.ints(shape);
        self.node("Reshape", &[input, &target], &[])
    }

    pub fn transpose(&mut self, input: &str, permutation: &[i64]) -> Value {
        self.node("Transpose", &[input], &[("perm", Attribute::Ints(permutation.to_vec()))])
    }

    pub fn concat(&mut self, inputs: &[&str], axis: i64) -> Value {
        self.node("Concat", inputs, &[("axis", Attribute::Int(axis))])
    }

    pub fn gather(&mut self, data: &str, indices: &str, axis: i64) -> Value {
        self.node("Gather", &[data, indices], &[("axis", Attribute::Int(axis))])
    }

    pub fn unsqueeze(&mut self, input: &str, axes: &[i64]) -> Value {
        let positions = self.ints(axes);
        self.node("Unsqueeze", &[input, &positions], &[])
    }

    pub fn squeeze(&mut self, input: &str, axes: &[i64]) -> Value {
        let positions = self.ints(axes);
        self.node("Squeeze", &[input, &positions], &[])
    }

    /// The size of dimension `axis` of `input`, `[1]`.
    pub fn size_of(&mut self, input: &str, axis: i64) -> Value {
        self.node(
            "Shape",
            &[input],
            &[("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))],
        )
    }

    /// `input` scaled to unit length over its last axis.
    pub fn l2_normalize(&mut self, input: &str) -> Value {
        self.node(
            "LpNormalization",
            &[input],
            &[("axis", Attribute::Int(-1)), ("p", Attribute::Int(2))],
        )
    }

    /// The serialised model, up to 2 GiB (see `onnx::external`).
    pub fn finish(self) -> Vec<u8> {
        self.model().encode_to_vec()
    }

    /// The model as a message.
    pub fn model(self) -> ModelProto {
        ModelProto {
            ir_version: self.ir_version,
            producer_name: env!("CARGO_PKG_NAME").into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.proto),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            ..ModelProto::default()
        }
    }

    fn push(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: Vec<Value>,
        attributes: &[(&str, Attribute)],
    ) {
        self.proto.node.push(NodeProto {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            name: format!("node_{}", self.proto.node.len()),
            output: outputs,
            op_type: op.into(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..NodeProto::default()
        });
    }

    fn initializer(&mut self, name: &str, data_type: DataType, shape: &[usize], raw: Vec<u8>) {
        self.proto.initializer.push(TensorProto {
            dims: shape.iter().map(|size| *size as i64).collect(),
            data_type: data_type as i32,
            name: name.into(),
            raw_data: raw,
            ..TensorProto::default()
        });
    }

    fn unique_name(&mut self, stem: &str) -> Value {
        self.next += 1;
        format!("{stem}_{}", self.next)
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.into(), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(number) => {
            proto.i = Some(*number);
            AttributeType::Int
        }
        Attribute::Ints(numbers) => {
            proto.ints.clone_from(numbers);
            AttributeType::Ints
        }
        Attribute::Float(number) => {
            proto.f = Some(*number);
            AttributeType::Float
        }
        Attribute::Text(text) => {
            proto.s = Some(text.as_bytes().to_vec());
            AttributeType::String
        }
    };
    proto.r#type = kind as i32;
    proto
}

/// The declaration of an input or output.
pub fn value_info(name: &str, data_type: DataType, shape: &[Dim]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|dim| DimensionProto {
            value: Some(match dim {
                Dim::Fixed(size) => DimensionValue::Value(*size as i64),
                Dim::Free(symbol) => DimensionValue::Param((*symbol).into()),
            }),
            ..DimensionProto::default()
        })
        .collect();
    let tensor =
        TensorTypeProto { elem_type: data_type as i32, shape: Some(TensorShapeProto { dim }) };
    let tensor_type = TypeProto { tensor_type: Some(tensor), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(tensor_type), ..ValueInfoProto::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn model(graph: Graph) -> ModelProto {
        ModelProto::decode(graph.finish().as_slice()).unwrap()
    }

    #[test]
    fn weights_are_stored_in_16_bits_and_cast() {
        let mut graph = Graph::new("test");
        let value = graph.weight("scale", &[2, 1], &[1.0, -0.5]);
        let proto = model(graph).graph.unwrap();
        let [stored] = proto.initializer.as_slice() else { panic!("{proto:?}") };
        assert_eq!(stored.dims, [2, 1]);
        assert_eq!(stored.data_type, DataType::Float16 as i32);
        assert_eq!(stored.raw_data, [0x00, 0x3C, 0x00, 0xB8]);
        let [cast] = proto.node.as_slice() else { panic!("{proto:?}") };
        assert_eq!((cast.op_type.as_str(), &cast.input[0]), ("Cast", &stored.name));
        assert_eq!(cast.output, [value]);
        assert_eq!(cast.attribute[0].i, Some(DataType::Float as i64));
    }

    #[test]
    fn every_name_is_defined_once_and_before_its_use() {
        let mut graph = Graph::new("test");
        let input = graph.input("x", DataType::Float, &[Dim::Free("batch"), Dim::Fixed(2)]);
        let weight = graph.weight("w", &[2, 2], &[0.0; 4]);
        let bias = graph.floats(&[2], &[0.0; 2]);
        let sum = graph.linear(&input, &weight, &bias);
        let count = graph.ints(&[1]);
        let [best, place] = graph.node_multi("TopK", &[&sum, &count], &[]);
        graph.output("best", &best, DataType::Float, &[Dim::Free("batch"), Dim::Fixed(1)]);
        graph.output("place", &place, DataType::Int64, &[Dim::Free("batch"), Dim::Fixed(1)]);
        let proto = model(graph).graph.unwrap();
        let mut known: HashSet<&str> = HashSet::new();
        let given = proto.input.iter().map(|value| value.name.as_str());
        let stored = proto.initializer.iter().map(|tensor| tensor.name.as_str());
        assert!(given.chain(stored).all(|name| known.insert(name)));
        let mut nodes = HashSet::new();
        for node in &proto.node {
            assert!(nodes.insert(&node.name), "{node:?}");
            assert!(node.input.iter().all(|name| known.contains(name.as_str())), "{node:?}");
            assert!(node.output.iter().all(|name| known.insert(name)), "{node:?}");
        }
        assert!(proto.output.iter().all(|value| known.contains(value.name.as_str())));
    }

    #[test]
    fn the_model_declares_its_versions() {
        let mut graph = Graph::new("test");
        graph.input("x", DataType::Int64, &[Dim::Free("batch"), Dim::Fixed(3)]);
        let proto = model(graph);
        assert_eq!((proto.ir_version, proto.opset_import[0].version), (IR_VERSION, OPSET));
        let declared = proto.graph.unwrap();
        assert_eq!(declared.name, "test");
        let tensor = declared.input[0].r#type.clone().unwrap().tensor_type.unwrap();
        assert_eq!(tensor.elem_type, DataType::Int64 as i32);
        let dims: Vec<_> = tensor.shape.unwrap().dim.into_iter().map(|dim| dim.value).collect();
        let batch = DimensionValue::Param("batch".into());
        assert_eq!(dims, [Some(batch), Some(DimensionValue::Value(3))]);
    }
}
