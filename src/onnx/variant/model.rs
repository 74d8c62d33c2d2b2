//! Reads a model with its external data for rewriting, and its weights as floats.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path};

use half::{bf16, f16};
use prost::Message;

use crate::error::{Error, ErrorKind, Result};
use crate::onnx::external;
use crate::onnx::proto::{AttributeProto, DataType, EXTERNAL, ModelProto, NodeProto, TensorProto};

/// Reads the model at `path`, including its external data.
///
/// # Errors
/// `ErrorKind::Bundle` if the file is not an ONNX model, or its external data can't be read.
pub fn read(path: &Path) -> Result<ModelProto> {
    let damaged = || {
        Error::new(ErrorKind::Bundle, "can't read an ONNX graph")
            .with_context("path", path.display())
    };
    let bytes = fs::read(path).map_err(|error| damaged().with_source(error))?;
    let mut model =
        ModelProto::decode(bytes.as_slice()).map_err(|error| damaged().with_source(error))?;
    let Some(graph) = model.graph.as_mut() else { return Err(damaged()) };
    let constants = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
    let constants = constants.filter_map(|attribute| attribute.t.as_mut());
    for tensor in graph.initializer.iter_mut().chain(constants) {
        if tensor.data_location == EXTERNAL {
            let name = tensor.name.clone();
            load(tensor, path)
                .map_err(|error| damaged().with_context("weight", name).with_source(error))?;
        }
    }
    model.metadata_props.retain(|entry| entry.key != external::DIGEST);
    Ok(model)
}

/// Reads the external data of a tensor of the model at `path`.
fn load(tensor: &mut TensorProto, path: &Path) -> io::Result<()> {
    let entry = |key: &str| {
        tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    };
    let number =
        |key: &str| entry(key).map(str::parse::<u64>).transpose().map_err(io::Error::other);
    let location = Path::new(entry("location").unwrap_or_default());
    if !location.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(io::Error::other("the weights are outside the model's directory"));
    }
    let (offset, length) = (number("offset")?, number("length")?);
    let mut file = File::open(path.with_file_name(location))?;
    file.seek(SeekFrom::Start(offset.unwrap_or(0)))?;
    let mut bytes = Vec::new();
    file.take(length.unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    if length.is_some_and(|length| length != bytes.len() as u64) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    tensor.raw_data = bytes;
    tensor.external_data.clear();
    tensor.data_location = 0;
    Ok(())
}

/// The tensor's values as 32-bit floats, row-major; None if they are not 16- or 32-bit floats, or
/// do not match the shape.
pub fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    let sixteen = |convert: fn(u16) -> f32| -> Vec<f32> {
        if tensor.raw_data.is_empty() {
            // In the lower 16 bits.
            return tensor.int32_data.iter().map(|bits| convert(*bits as u16)).collect();
        }
        let (pairs, _) = tensor.raw_data.as_chunks::<2>();
        pairs.iter().map(|pair| convert(u16::from_le_bytes(*pair))).collect()
    };
    let kind = tensor.data_type;
    let values = if kind == DataType::Float as i32 && tensor.raw_data.is_empty() {
        tensor.float_data.clone()
    } else if kind == DataType::Float as i32 {
        let (words, _) = tensor.raw_data.as_chunks::<4>();
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    } else if kind == DataType::Float16 as i32 {
        sixteen(|bits| f16::from_bits(bits).to_f32())
    } else if kind == DataType::Bfloat16 as i32 {
        sixteen(|bits| bf16::from_bits(bits).to_f32())
    } else {
        return None;
    };
    let sizes = tensor.dims.iter().map(|size| usize::try_from(*size).ok());
    let count = sizes.reduce(|all, next| all?.checked_mul(next?)).unwrap_or(Some(1));
    (count == Some(values.len())).then_some(values)
}

/// A tensor with the raw data `bytes`.
pub fn tensor(name: &str, data_type: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        dims,
        data_type: data_type as i32,
        name: name.into(),
        raw_data: bytes,
        ..TensorProto::default()
    }
}

/// The node's attribute `name`, if it has one.
pub fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

/// Whether the node is the operator `op` of ONNX's default domain.
pub fn is_op(node: &NodeProto, op: &str) -> bool {
    node.op_type == op && matches!(node.domain.as_str(), "" | "ai.onnx")
}

/// Whether the node has subgraphs, which may read outer values.
pub fn has_subgraphs(node: &NodeProto) -> bool {
    node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}
