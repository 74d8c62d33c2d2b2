//! `fusioncap demo`: everything embedded.

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct DemoArgs {}

pub fn run(_args: DemoArgs) -> Result<()> {
    Err(Error::new(ErrorKind::Internal, "this subcommand is not in this build")
        .with("name", "demo"))
}
