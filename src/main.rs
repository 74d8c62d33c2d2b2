//! The binary: runs the command line and returns its exit code.

fn main() {
    // Without this variable, ONNX Runtime stores a device id and reports usage once it is loaded.
    // SAFETY: the process has no other thread yet.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    fusioncap::exit(fusioncap::cli::main())
}
