//! Reads the weights of a graph that [`super::graph`] wrote.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use half::f16;
use prost::Message;

use super::proto::{DataType, ModelProto, TensorProto};
use crate::error::{Error, ErrorKind, Result};

/// A weight's shape and its values, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Initializer {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The 16-bit weights in the file at `path` by name, without the suffix.
///
/// # Errors
/// `ErrorKind::Bundle` if the file is not an ONNX model or a weight is truncated.
pub fn read(path: &Path) -> Result<HashMap<String, Initializer>> {
    let damaged = || {
        Error::new(ErrorKind::Bundle, "can't read an ONNX graph")
            .with_context("path", path.display())
    };
    let bytes = fs::read(path).map_err(|error| damaged().with_source(error))?;
    let model =
        ModelProto::decode(bytes.as_slice()).map_err(|error| damaged().with_source(error))?;
    let mut found = HashMap::new();
    for tensor in model.graph.unwrap_or_default().initializer {
        let Some(name) = tensor.name.strip_suffix("_f16").map(str::to_owned) else {
            continue;
        };
        let initializer = halves(tensor).ok_or_else(|| damaged().with_context("weight", &name))?;
        found.insert(name, initializer);
    }
    Ok(found)
}

/// None if the data are not 16-bit floats of the tensor's shape.
fn halves(tensor: TensorProto) -> Option<Initializer> {
    let shape: Vec<usize> =
        tensor.dims.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<_>>()?;
    let (pairs, rest) = tensor.raw_data.as_chunks::<2>();
    let values: Vec<f32> = pairs.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect();
    let fits = tensor.data_type == DataType::Float16 as i32
        && rest.is_empty()
        && shape.iter().try_fold(1_usize, |size, next| size.checked_mul(*next))
            == Some(values.len());
    fits.then_some(Initializer { shape, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::Graph;

    #[test]
    fn weights_round_trip() {
        let mut graph = Graph::new("test");
        graph.weight("scale", &[2, 1], &[1.0, -0.5]);
        graph.scalar(3.0);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), graph.finish()).unwrap();
        let found = read(file.path()).unwrap();
        let expected = Initializer { shape: vec![2, 1], values: vec![1.0, -0.5] };
        assert_eq!(found, HashMap::from([("scale".to_owned(), expected)]));

        fs::write(file.path(), b"\xff\xff").unwrap();
        assert_eq!(read(file.path()).unwrap_err().kind(), ErrorKind::Bundle);
    }
}
