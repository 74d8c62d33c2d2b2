//! Errors of an import.

use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind};

pub fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "can't write").with("path", path.display()).because(error)
}

pub fn refusal(message: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Config, message).with("path", path.display())
}
