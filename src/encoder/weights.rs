//! Reads named weights from PyTorch checkpoints and safetensors files.

use std::collections::HashMap;
use std::path::Path;

use pytorch_reader::{DType, PytorchReader};
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, ErrorKind, Result};

/// A dense tensor in row-major order.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Tensor {
    /// The transpose of a matrix: PyTorch stores linear layers as `[outputs, inputs]`, ONNX's
    /// `MatMul` needs `[inputs, outputs]`.
    pub fn transposed(&self) -> Self {
        let (rows, columns) = (self.shape[0], self.data.len() / self.shape[0].max(1));
        let mut data = vec![0.0; self.data.len()];
        for row in 0..rows {
            for column in 0..columns {
                data[column * rows + row] = self.data[row * columns + column];
            }
        }
        Self { shape: vec![columns, rows], data }
    }
}

/// The weights of one model by name.
pub struct Weights {
    tensors: HashMap<String, Tensor>,
    origin: String,
}

impl Weights {
    /// Weights from memory; `origin` replaces the file name in errors.
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>, origin: &str) -> Self {
        Self { tensors: tensors.into_iter().collect(), origin: origin.into() }
    }

    /// Reads a PyTorch checkpoint, including the legacy format of PyTorch 0.1.10 to 1.5.
    pub fn from_pytorch(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let reader = PytorchReader::new(path).map_err(|error| unreadable(&origin, error))?;
        let mut tensors = HashMap::new();
        for (name, tensor) in reader.tensors() {
            if tensor.dtype() != DType::F32 {
                continue; // counters such as num_batches_tracked
            }
            let bytes = tensor.read().map_err(|error| unreadable(&origin, error))?;
            let data = floats(&bytes);
            tensors.insert(name.clone(), Tensor { shape: tensor.shape().to_vec(), data });
        }
        Ok(Self { tensors, origin })
    }

    /// Reads the 32- and 16-bit float tensors of a safetensors file.
    pub fn from_safetensors(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| unreadable(&origin, error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| unreadable(&origin, error))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            let data = match view.dtype() {
                Dtype::F32 => floats(view.data()),
                Dtype::F16 => halves(view.data()),
                _ => continue,
            };
            tensors.insert(name, Tensor { shape: view.shape().to_vec(), data });
        }
        Ok(Self { tensors, origin })
    }

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` with the tensor, if it is missing, has another shape or is not finite.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self.find(name)?;
        if tensor.shape != shape {
            return Err(self
                .wrong("a weight has an unexpected shape", name)
                .with_context("shape", format!("{:?}", tensor.shape))
                .with_context("expected", format!("{shape:?}")));
        }
        // A single one would make every embedding NaN much later.
        if let Some(value) = tensor.data.iter().find(|value| !value.is_finite()) {
            return Err(self
                .wrong("a weight is not a finite number", name)
                .with_context("value", value));
        }
        Ok(tensor)
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.wrong("a weight is missing", name))
    }

    fn wrong(&self, message: &'static str, name: &str) -> Error {
        Error::new(ErrorKind::Bundle, message)
            .with_context("file", &self.origin)
            .with_context("tensor", name)
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|word| half::f16::from_le_bytes(*word).to_f32()).collect()
}

fn unreadable(origin: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Bundle, "can't read a weights file")
        .with_context("file", origin)
        .with_source(error)
}
