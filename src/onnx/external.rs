//! Writes models with external data (ONNX specification): protocol buffers are limited to 2 GiB, so
//! the weights of larger models are in a second file.
//!
//! `vision.onnx` then comes with `vision.onnx.data`. The model's metadata contain the digest of the
//! data, so that the model's digest covers both files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::proto::{EXTERNAL, ModelProto, StringStringEntryProto, TensorProto};
use crate::error::{Error, Result};

/// Maximum total bytes of weights in the model file.
pub const INLINE_LIMIT: usize = 2_000_000_000;
/// The metadata key of the data file's SHA-256.
pub const DIGEST: &str = "external_data_sha256";

/// Smaller tensors (shapes, axes) stay in the model, since shape inference needs them.
const MIN_EXTERNAL_BYTES: usize = 1024;
/// Alignment of tensors, for which ONNX Runtime can map the data into memory.
const PAGE: usize = 4096;

/// The data file of the model at `path`.
pub fn data_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

/// Writes `model` to `path`, with a data file if its weights exceed `inline_limit` bytes.
///
/// # Errors
/// `ErrorKind::Io` with the file that can't be written.
pub fn save(mut model: ModelProto, path: &Path, inline_limit: usize) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::unwritable(folder, error))?;
    }
    let tensors = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    let mut tensors: Vec<&mut TensorProto> = tensors.collect();
    let total: usize = tensors.iter().map(|tensor| tensor.raw_data.len()).sum();
    if total > inline_limit {
        let data = data_path(path);
        let digest =
            write_data(&mut tensors, &data).map_err(|error| Error::unwritable(&data, error))?;
        model.metadata_props.push(entry(DIGEST, digest));
    }
    fs::write(path, model.encode_to_vec()).map_err(|error| Error::unwritable(path, error))
}

/// Moves the bytes of large tensors to the file at `path`; returns its SHA-256.
fn write_data(tensors: &mut [&mut TensorProto], path: &Path) -> io::Result<String> {
    let location = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut file = BufWriter::new(File::create(path)?);
    let mut hasher = Sha256::new();
    let mut offset = 0_usize;
    for tensor in tensors.iter_mut().filter(|tensor| tensor.raw_data.len() >= MIN_EXTERNAL_BYTES) {
        let bytes = std::mem::take(&mut tensor.raw_data);
        let gap = vec![0; offset.next_multiple_of(PAGE) - offset];
        for part in [&gap, &bytes] {
            file.write_all(part)?;
            hasher.update(part);
        }
        offset += gap.len();
        tensor.data_location = EXTERNAL;
        tensor.external_data = vec![
            entry("location", location.clone()),
            entry("offset", offset.to_string()),
            entry("length", bytes.len().to_string()),
        ];
        offset += bytes.len();
    }
    file.flush()?;
    Ok(hex::encode(hasher.finalize()))
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::onnx::graph::{Dim, Graph};
    use crate::onnx::proto::DataType;

    /// Its one weight exceeds [`MIN_EXTERNAL_BYTES`].
    fn model() -> ModelProto {
        let mut graph = Graph::new("large");
        let size = [Dim::Fixed(512)];
        let x = graph.input("x", DataType::Float, &size);
        let weight = graph.floats(&[512], &[1.0; 512]);
        let y = graph.add(&x, &weight);
        graph.output("y", &y, DataType::Float, &size);
        graph.model()
    }

    #[test]
    fn the_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        // A directory in the place of a file can't be replaced.
        fs::create_dir(data_path(&path)).unwrap();
        let error = save(model(), &path, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let named = format!("(path: {})", data_path(&path).display());
        assert!(error.to_string().ends_with(&named), "{error}");
        fs::remove_dir(data_path(&path)).unwrap();

        fs::create_dir(&path).unwrap();
        let error = save(model(), &path, 0).unwrap_err();
        let named = format!("(path: {})", path.display());
        assert!(error.to_string().ends_with(&named), "{error}");
    }
}
