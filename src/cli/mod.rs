//! The command line: one file a subcommand, raw arguments to validated settings to a library call.

use std::process::ExitCode;

pub fn main() -> ExitCode {
    todo!()
}
