//! Writes the results of commands to stdout.

use std::io::{self, Write};

use crate::error::{Error, ErrorKind, Result};

/// Writes to stdout; a reader that stopped early (`| head`) is not an error.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Io, "can't write to stdout").with_source(error))
        }
        _ => Ok(()),
    }
}

/// Prints `value` as one JSON object on one line.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| {
        Error::new(ErrorKind::Internal, "can't write the report").with_source(error)
    })?;
    print(&format!("{text}\n"))
}
