//! `fusioncap worker`: the worker, run in the foreground until SIGTERM.

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct WorkerArgs {}

pub fn run(_args: WorkerArgs) -> Result<()> {
    Err(Error::new(ErrorKind::Internal, "this subcommand is not in this build")
        .with("name", "worker"))
}
