//! Values that an ONNX Runtime session returns.

use ort::session::SessionOutputs;
use ort::value::{DynValue, PrimitiveTensorElementType};

use crate::error::{Error, ErrorKind, Result};

/// Takes the output `name` out of `outputs`.
///
/// # Errors
/// `ErrorKind::Bundle` if the graph has no such output.
pub fn take_output(outputs: &mut SessionOutputs<'_>, name: &str) -> Result<DynValue> {
    outputs.remove(name).ok_or_else(|| {
        Error::new(ErrorKind::Bundle, "a graph of the bundle lacks an output")
            .with_context("output", name)
    })
}

/// The values of the output `name`, row-major.
///
/// # Errors
/// `ErrorKind::Bundle` if the graph has no such output, or if it does not hold `count` values.
pub fn read_output<T: PrimitiveTensorElementType + Copy>(
    outputs: &mut SessionOutputs<'_>,
    name: &str,
    count: usize,
) -> Result<Vec<T>> {
    let value = take_output(outputs, name)?;
    let (shape, data) = value.try_extract_tensor::<T>().map_err(runtime_error)?;
    if data.len() == count {
        return Ok(data.to_vec());
    }
    Err(Error::new(ErrorKind::Bundle, "a graph of the bundle and config.json disagree")
        .with_context("output", name)
        .with_context("shape", format!("{shape:?}"))
        .with_context("expected values", count))
}

/// The first `wanted` of the `rows` rows of the output `name`, row-major.
///
/// # Errors
/// `ErrorKind::Bundle` if the graph has no such output.
pub fn read_rows(
    outputs: &mut SessionOutputs<'_>,
    name: &str,
    wanted: usize,
    rows: usize,
) -> Result<Vec<f32>> {
    let value = take_output(outputs, name)?;
    let (_, data) = value.try_extract_tensor::<f32>().map_err(runtime_error)?;
    Ok(data[..data.len() / rows * wanted].to_vec())
}

pub fn runtime_error(error: ort::Error) -> Error {
    Error::new(ErrorKind::Runtime, "ONNX Runtime failed").with_source(error)
}
