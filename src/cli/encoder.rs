//! `fusioncap encoder`: builds the joint encoder that training starts from.

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct EncoderArgs {}

pub fn run(_args: EncoderArgs) -> Result<()> {
    Err(Error::new(ErrorKind::Internal, "this subcommand is not in this build")
        .with("name", "encoder"))
}
