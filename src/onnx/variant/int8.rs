//! Block-wise 8-bit quantisation: each product with a constant matrix becomes ONNX Runtime's
//! `MatMulNBits`.
//!
//! The matrix is stored as 8-bit integers with one scale per block of a column. ONNX Runtime
//! quantises the other factor at run time per block of a row, so that a row does not depend on the
//! rest of its batch, as it would with one scale per tensor.

use std::collections::HashMap;

use super::model::{self, attribute, is_op};
use crate::onnx::proto::{
    AttributeProto, AttributeType, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto,
};
use crate::onnx::subgraph;

/// The domain of ONNX Runtime's contributed operators.
const DOMAIN: &str = "com.microsoft";
/// Entries per scale. (With 128, ONNX Runtime 1.31 computes an odd last row with another kernel,
/// which rounds differently.)
const BLOCK: usize = 64;
/// For matrices for which it needs less padding.
const SMALL_BLOCK: usize = 32;
/// `accuracy_level`: compute in 8 bits.
const INT8: i64 = 4;
/// The quantised value of 0.
const ZERO_POINT: f32 = 128.0;
const MAX_LEVEL: f32 = 127.0;

/// Rewrites all products with constant matrices; returns their number.
pub fn convert(model: &mut ModelProto) -> usize {
    let Some(graph) = model.graph.as_mut() else { return 0 };
    let found = constant_products(graph);
    let count = found.len();
    let mut quantised: HashMap<String, [String; 2]> = HashMap::new();
    for (index, matrix) in found {
        let Some(weight) = graph.node[index].input.get(1).cloned() else { continue };
        let parts = quantised.entry(weight.clone()).or_insert_with(|| {
            let names = [format!("{weight}_int8"), format!("{weight}_scales")];
            graph.initializer.extend(quantise(&matrix, &names));
            names
        });
        rewrite(&mut graph.node[index], parts, &matrix);
    }
    subgraph::prune(graph);
    if count > 0 && model.opset_import.iter().all(|set| set.domain != DOMAIN) {
        model.opset_import.push(OperatorSetIdProto { domain: DOMAIN.into(), version: 1 });
    }
    count
}

/// A constant matrix in column-major order: `[outputs, inputs]`.
struct Matrix {
    inputs: usize,
    outputs: usize,
    columns: Vec<f32>,
}

impl Matrix {
    fn block(&self) -> usize {
        let fits = self.inputs.next_multiple_of(BLOCK) == self.inputs.next_multiple_of(SMALL_BLOCK);
        if fits { BLOCK } else { SMALL_BLOCK }
    }
}

/// The products with a constant matrix on the right, with their node indices.
fn constant_products(graph: &GraphProto) -> Vec<(usize, Matrix)> {
    let constants = Constants::new(graph);
    let products = graph.node.iter().enumerate().filter(|(_, node)| is_op(node, "MatMul"));
    let found = products.filter_map(|(index, node)| {
        let [left, right] = node.input.as_slice() else { return None };
        if constants.find(left).is_some() {
            return None;
        }
        let matrix = constants.find(right)?;
        matrix.columns.iter().all(|value| value.is_finite()).then_some((index, matrix))
    });
    found.collect()
}

struct Constants<'a> {
    tensors: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, &'a NodeProto>,
}

impl<'a> Constants<'a> {
    fn new(graph: &'a GraphProto) -> Self {
        let named = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
        let producers = graph.node.iter().filter_map(|node| match node.output.as_slice() {
            [output] => Some((output.as_str(), node)),
            _ => None,
        });
        Self { tensors: named.collect(), producers: producers.collect() }
    }

    /// The constant matrix `name`, through casts and transpositions; None if it is not constant.
    fn find(&self, name: &str) -> Option<Matrix> {
        let (mut current, mut transposed) = (name, false);
        loop {
            if let Some(tensor) = self.tensors.get(current) {
                return matrix(tensor, transposed);
            }
            let producer = self.producers.get(current)?;
            if is_op(producer, "Constant") {
                return matrix(attribute(producer, "value")?.t.as_ref()?, transposed);
            }
            let to_float =
                attribute(producer, "to").and_then(|to| to.i) == Some(DataType::Float as i64);
            if is_op(producer, "Transpose") {
                // A matrix has only one non-trivial permutation.
                transposed = !transposed;
            } else if !(is_op(producer, "Identity") || is_op(producer, "Cast") && to_float) {
                return None;
            }
            current = producer.input.first()?;
        }
    }
}

fn matrix(tensor: &TensorProto, transposed: bool) -> Option<Matrix> {
    let [rows, columns] = tensor.dims.as_slice() else { return None };
    let (rows, columns) = (usize::try_from(*rows).ok()?, usize::try_from(*columns).ok()?);
    if rows == 0 || columns == 0 {
        return None;
    }
    let values = model::floats(tensor)?;
    if transposed {
        return Some(Matrix { inputs: columns, outputs: rows, columns: values });
    }
    let mut by_column = Vec::with_capacity(values.len());
    for column in 0..columns {
        by_column.extend(values.iter().skip(column).step_by(columns));
    }
    Some(Matrix { inputs: rows, outputs: columns, columns: by_column })
}

/// The quantised matrix `[outputs, blocks, block]` and its scales `[outputs, blocks]`.
fn quantise(matrix: &Matrix, names: &[String; 2]) -> [TensorProto; 2] {
    let block = matrix.block();
    let blocks = matrix.inputs.div_ceil(block);
    let mut numbers = Vec::with_capacity(matrix.outputs * blocks * block);
    let mut scales = Vec::with_capacity(matrix.outputs * blocks * 4);
    for part in matrix.columns.chunks(matrix.inputs).flat_map(|column| column.chunks(block)) {
        let largest = part.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = if largest > 0.0 { largest / MAX_LEVEL } else { 1.0 };
        scales.extend(scale.to_le_bytes());
        let number =
            |value: &f32| (value / scale).round().clamp(-MAX_LEVEL, MAX_LEVEL) + ZERO_POINT;
        numbers.extend(part.iter().map(|value| number(value) as u8));
        numbers.resize(numbers.len() + block - part.len(), ZERO_POINT as u8);
    }
    let [outputs, blocks, block] = [matrix.outputs, blocks, block].map(|size| size as i64);
    [
        model::tensor(&names[0], DataType::Uint8, vec![outputs, blocks, block], numbers),
        model::tensor(&names[1], DataType::Float, vec![outputs, blocks], scales),
    ]
}

fn rewrite(node: &mut NodeProto, parts: &[String; 2], matrix: &Matrix) {
    node.op_type = "MatMulNBits".into();
    node.domain = DOMAIN.into();
    node.input.truncate(1);
    node.input.extend(parts.iter().cloned());
    node.attribute = [
        ("K", matrix.inputs as i64),
        ("N", matrix.outputs as i64),
        ("bits", 8),
        ("block_size", matrix.block() as i64),
        ("accuracy_level", INT8),
    ]
    .map(|(name, value)| AttributeProto {
        name: name.into(),
        i: Some(value),
        r#type: AttributeType::Int as i32,
        ..AttributeProto::default()
    })
    .to_vec();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{Dim, Graph};

    /// `x @ w`, `x @ w^T`, and `x @ x^T` without a constant factor.
    fn products() -> ModelProto {
        let mut graph = Graph::new("test");
        let x = graph.input("x", DataType::Float, &[Dim::Free("rows"), Dim::Fixed(2)]);
        let weight = graph.weight("w", &[2, 2], &[1.0, -0.5, 0.25, 2.0]);
        let transposed = graph.transpose(&weight, &[1, 0]);
        let other = graph.transpose(&x, &[1, 0]);
        for (name, right) in [("plain", &weight), ("transposed", &transposed), ("dynamic", &other)]
        {
            let product = graph.matmul(&x, right);
            graph.output(name, &product, DataType::Float, &[Dim::Free("rows"), Dim::Free("width")]);
        }
        graph.model()
    }

    #[test]
    fn only_products_with_constants_are_rewritten() {
        let mut model = products();
        assert_eq!(convert(&mut model), 2);
        let sets: Vec<&str> = model.opset_import.iter().map(|set| set.domain.as_str()).collect();
        assert_eq!(sets, ["", DOMAIN]);
        let graph = model.graph.unwrap();
        let kinds: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(
            kinds,
            [
                "Transpose",
                "MatMulNBits",
                "Identity",
                "MatMulNBits",
                "Identity",
                "MatMul",
                "Identity"
            ]
        );
        assert!(graph.initializer.iter().all(|tensor| tensor.name != "w_f16"));
        let numbers = &graph.initializer[0];
        assert_eq!(numbers.dims, [2, 1, 32]);
        // The first column: 1 is the largest, a quarter of it 31.75.
        assert_eq!(numbers.raw_data[..3], [255, 160, 128]);
        let transposed = &graph.initializer[2];
        assert_eq!(transposed.raw_data[..3], [255, 64, 128]);
    }

    #[test]
    fn a_matrix_with_infinities_is_unchanged() {
        let mut graph = Graph::new("test");
        let x = graph.input("x", DataType::Float, &[Dim::Fixed(1), Dim::Fixed(1)]);
        let weight = graph.floats(&[1, 1], &[f32::INFINITY]);
        let product = graph.matmul(&x, &weight);
        graph.output("y", &product, DataType::Float, &[Dim::Fixed(1), Dim::Fixed(1)]);
        let mut model = graph.model();
        let before = model.clone();
        assert_eq!(convert(&mut model), 0);
        assert_eq!(model, before);
    }
}
