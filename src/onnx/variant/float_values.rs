//! Finds the values of a graph that are 32-bit floats, from the types of its operators.

use std::collections::HashSet;

use super::model::{attribute, has_subgraphs, is_op};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{DataType, GraphProto, NodeProto};

/// Operators whose outputs have the type of their first input.
const SAME_AS_FIRST_INPUT: &str = "\
    Abs Add Attention AveragePool BatchNormalization Ceil Celu Clip Concat Conv ConvTranspose \
    Cos CumSum DepthToSpace Div Einsum Elu Erf Exp Expand Flatten Floor Gather GatherElements \
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish \
    Identity InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax LpNormalization \
    MatMul Max MaxPool Mean Min Mish Mod Mul Neg PRelu Pad Pow RMSNormalization Range Reciprocal \
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu \
    Reshape Round ScatterElements ScatterND Selu Sigmoid Sign Sin Slice Softmax Softplus \
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze";
/// Operators with integer or boolean outputs.
const NEVER_FLOAT: &str = "\
    And ArgMax ArgMin Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual NonZero Not Or \
    Shape Size";
/// Operators with other type rules.
const SPECIAL_CASES: &str = "Cast Constant ConstantOfShape OneHot TopK Where";

/// The names of all values that are 32-bit floats.
///
/// # Errors
/// `ErrorKind::Bundle` with an unsupported operator.
pub fn find(graph: &GraphProto) -> Result<HashSet<String>> {
    let inputs = graph.input.iter().filter(|input| {
        let declared = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        declared.is_some_and(|tensor| tensor.elem_type == DataType::Float as i32)
    });
    let weights =
        graph.initializer.iter().filter(|tensor| tensor.data_type == DataType::Float as i32);
    let mut floats: HashSet<String> = inputs.map(|input| input.name.clone()).collect();
    floats.extend(weights.map(|tensor| tensor.name.clone()));
    for node in &graph.node {
        let outputs: Vec<String> = node
            .output
            .iter()
            .enumerate()
            .filter(|(index, name)| !name.is_empty() && is_float(node, *index, &floats))
            .map(|(_, name)| name.clone())
            .collect();
        if !is_known(node) {
            return Err(Error::new(ErrorKind::Bundle, "an operator can't be converted to fp16")
                .with_context("operator", &node.op_type)
                .with_context("domain", &node.domain)
                .with_context("node", &node.name));
        }
        floats.extend(outputs);
    }
    Ok(floats)
}

fn is_known(node: &NodeProto) -> bool {
    let target = attribute(node, "to").and_then(|to| to.i);
    // A cast to 16-bit floats at run time.
    let other_float = is_op(node, "Cast")
        && [DataType::Float16, DataType::Bfloat16].iter().any(|kind| target == Some(*kind as i64));
    let known = [SAME_AS_FIRST_INPUT, NEVER_FLOAT, SPECIAL_CASES]
        .into_iter()
        .any(|names| contains_op(names, node));
    known && !other_float && !has_subgraphs(node)
}

fn contains_op(names: &str, node: &NodeProto) -> bool {
    names.split_whitespace().any(|op| is_op(node, op))
}

/// Whether output `index` of the node is a float.
fn is_float(node: &NodeProto, index: usize, floats: &HashSet<String>) -> bool {
    let input = |index: usize| node.input.get(index).is_some_and(|name| floats.contains(name));
    let tensor = attribute(node, "value").and_then(|value| value.t.as_ref());
    match node.op_type.as_str() {
        "Cast" => attribute(node, "to").and_then(|to| to.i) == Some(DataType::Float as i64),
        "Constant" => {
            let listed = ["value_float", "value_floats"];
            listed.iter().any(|name| attribute(node, name).is_some())
                || tensor.is_some_and(|tensor| tensor.data_type == DataType::Float as i32)
        }
        "ConstantOfShape" => tensor.is_none_or(|tensor| tensor.data_type == DataType::Float as i32),
        "OneHot" => input(2),
        "TopK" | "MaxPool" => index == 0 && input(0),
        "Where" => input(1),
        _ => input(0) && !contains_op(NEVER_FLOAT, node),
    }
}
