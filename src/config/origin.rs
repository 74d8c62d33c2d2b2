//! The source of a configuration value, as shown in errors.

use std::fmt;
use std::path::PathBuf;

/// The source of a value.
#[derive(Clone, Debug)]
pub enum Origin {
    File { path: PathBuf, line: Option<usize> },
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: None } => write!(formatter, "{}", path.display()),
            Self::File { path, line: Some(line) } => {
                write!(formatter, "{}:{line}", path.display())
            }
            Self::Variable(name) => formatter.write_str(name),
            Self::Flag(flag) => formatter.write_str(flag),
        }
    }
}
