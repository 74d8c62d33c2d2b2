//! A safetensors checkpoint in one file or in shards. Opening reads the headers and checks the file
//! lengths; tensors are read on demand, so that a model never has to fit in memory twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::encoder::weights::Tensor;
use crate::error::{Error, Result};
use crate::onnx::graph::Precision;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Size of the header's length field.
const LENGTH_BYTES: u64 = 8;
/// The format's limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of one model by name.
pub struct Checkpoint {
    files: Vec<Shard>,
    /// The file index and the header entry of each tensor, by name.
    tensors: HashMap<String, (usize, TensorInfo)>,
    /// The file or index of the checkpoint, for errors.
    origin: PathBuf,
}

struct Shard {
    path: PathBuf,
    file: File,
    /// Offset of the tensors.
    start: u64,
}

/// `model.safetensors.index.json`
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// The checkpoint in `dir`, or None.
    ///
    /// # Errors
    /// `ErrorKind::Config` with the file that is missing, truncated or malformed.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX));
        if single.exists() {
            let mut checkpoint = Self::new(single.clone());
            checkpoint.add_file(single)?;
            return Ok(Some(checkpoint));
        }
        if index.exists() {
            return Self::from_index(dir, index).map(Some);
        }
        Ok(None)
    }

    fn new(origin: PathBuf) -> Self {
        Self { files: Vec::new(), tensors: HashMap::new(), origin }
    }

    fn from_index(dir: &Path, path: PathBuf) -> Result<Self> {
        let unusable = || Error::config_at("can't read the index of the weights", &path);
        let bytes = fs::read(&path).map_err(|error| unusable().with_source(error))?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|error| unusable().with_source(error))?;
        let mut checkpoint = Self::new(path.clone());
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        for name in names {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(unusable()
                    .with_context("file", name)
                    .with_context("allowed", "a file beside it"));
            }
            checkpoint.add_file(dir.join(name))?;
        }
        Ok(checkpoint)
    }

    /// Reads the header of the file at `path`.
    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let failed =
            |error: io::Error| Error::config_at("can't read the weights", &path).with_source(error);
        let mut file = File::open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let truncated = |expected: u64| {
            Error::config_at("a weights file is truncated", &path)
                .with_context("bytes", bytes)
                .with_context("expected", expected)
        };
        let mut length = [0; LENGTH_BYTES as usize];
        if bytes < LENGTH_BYTES {
            return Err(truncated(LENGTH_BYTES));
        }
        file.read_exact(&mut length).map_err(failed)?;
        let header_bytes = u64::from_le_bytes(length);
        let damaged = || Error::config_at("a weights file is not in the safetensors format", &path);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(damaged().with_context("header bytes", header_bytes));
        }
        let start = LENGTH_BYTES + header_bytes;
        if bytes < start {
            return Err(truncated(start));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(failed)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged().with_source(error))?;
        let expected = start.saturating_add(metadata.data_len() as u64);
        if bytes < expected {
            return Err(truncated(expected));
        }
        if bytes > expected {
            return Err(damaged().with_context("bytes", bytes).with_context("expected", expected));
        }
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            self.tensors.insert(name, (index, info.clone()));
        }
        self.files.push(Shard { path, file, start });
        Ok(())
    }

    /// Reads the tensor `name`, which must have `shape`, and its precision.
    ///
    /// # Errors
    /// `ErrorKind::Config` with the tensor, if it is missing, has another shape or an unsupported
    /// type, or is not finite.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<(Tensor, Precision)> {
        let Some((index, info)) = self.tensors.get(name) else {
            return Err(Error::config_at("a weight is missing", &self.origin)
                .with_context("tensor", name)
                .with_context("expected", format!("{shape:?}")));
        };
        let shard = &self.files[*index];
        let wrong = |message| Error::config_at(message, &shard.path).with_context("tensor", name);
        if info.shape != shape {
            return Err(wrong("a weight has an unexpected shape")
                .with_context("expected", format!("{shape:?}"))
                .with_context("found", format!("{:?}", info.shape)));
        }
        let precision = match info.dtype {
            Dtype::F32 => Precision::Single,
            Dtype::F16 => Precision::Half,
            Dtype::BF16 => Precision::Bfloat,
            other => {
                return Err(wrong("a weight has an unsupported type")
                    .with_context("found", format!("{other:?}"))
                    .with_context("allowed", "F32, F16, BF16"));
            }
        };
        let bytes =
            shard.bytes(info).map_err(|error| wrong("can't read a weight").with_source(error))?;
        let data = floats(&bytes, precision);
        // A single one would make every embedding NaN much later.
        if let Some(value) = data.iter().find(|value| !value.is_finite()) {
            return Err(wrong("a weight is not a finite number").with_context("value", value));
        }
        Ok((Tensor { shape: shape.to_vec(), data }, precision))
    }

    /// An error for the values of the tensor `name`.
    pub fn wrong(&self, message: &'static str, name: &str) -> Error {
        Error::config_at(message, &self.origin).with_context("tensor", name)
    }
}

impl Shard {
    fn bytes(&self, info: &TensorInfo) -> io::Result<Vec<u8>> {
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + from as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn floats(bytes: &[u8], precision: Precision) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match precision {
        Precision::Single => {
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        }
        Precision::Half => pairs().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect(),
        Precision::Bfloat => pairs().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect(),
    }
}
