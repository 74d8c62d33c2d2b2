//! Arguments to exit codes, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    // ONNX Runtime keeps a device id and reports usage unless told not to before it is loaded.
    // SAFETY: the process has no other thread yet.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    fusioncap::cli::main()
}
