//! The test kit: a real Kafka, a real S3 server and the `fusioncap` binary as a process, for the
//! integration tests and the benchmarks.
//!
//! The kit is a crate of its own, a dev-dependency that does not know the `fusioncap` library. It
//! holds what more than one test binary or benchmark uses; what only one of them uses belongs
//! there. A helper panics where something goes wrong, as a test does.

pub mod bucket;
pub mod kafka;
pub mod many_scans;
pub mod object_store;
pub mod process;
pub mod table;

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The absolute path of a file of the repository, given relative to its root.
pub fn root(path: &str) -> PathBuf {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.ancestors().nth(2).expect("the kit is at tests/kit").join(path)
}

/// The sample photos of the repository, sorted by name.
pub fn samples() -> Vec<PathBuf> {
    let entries = fs::read_dir(root("samples")).unwrap();
    let mut photos: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .collect();
    photos.sort();
    photos
}

/// The path of the binary under test. Cargo builds it for the tests and benchmarks of the crate,
/// and names it in their environment.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("CARGO_BIN_EXE_fusioncap");
    path.expect("`cargo test` or `cargo bench` sets CARGO_BIN_EXE_fusioncap").into()
}

/// The binary with `arguments`, without the `FUSIONCAP_*` variables of the caller's environment.
pub fn fusioncap<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"FUSIONCAP_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// The standard output of a command, which must be UTF-8.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The standard error of a command, which must be UTF-8.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A loopback address whose port was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
