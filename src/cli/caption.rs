//! `fusioncap caption`: captions images on this machine or in S3.

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct CaptionArgs {}

pub fn run(_args: CaptionArgs) -> Result<()> {
    Err(Error::new(ErrorKind::Internal, "this subcommand is not in this build")
        .with("name", "caption"))
}
