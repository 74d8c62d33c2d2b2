//! Errors of an import.

use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind};

pub fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "can't write").with_context("path", path.display()).with_source(error)
}

pub fn refusal(message: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Config, message).with_context("path", path.display())
}
