//! Arguments to exit codes, nothing else.

fn main() {
    // ONNX Runtime keeps a device id and reports usage unless told not to before it is loaded.
    // SAFETY: the process has no other thread yet.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    fusioncap::exit(fusioncap::cli::main())
}
