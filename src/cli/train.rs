//! `fusioncap train`: trains a captioner from text alone.

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct TrainArgs {}

pub fn run(_args: TrainArgs) -> Result<()> {
    Err(Error::new(ErrorKind::Internal, "this subcommand is not in this build")
        .with("name", "train"))
}
