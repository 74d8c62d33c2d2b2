//! Arguments to exit codes, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    fusioncap::cli::main()
}
