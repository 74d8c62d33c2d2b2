//! `fusioncap config`: the effective configuration as YAML, with secrets masked.

use crate::cli::settings::Settings;
use crate::config::reference;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    settings: Settings,
    /// Print the description of every field instead, as Markdown (docs/configuration.md)
    #[arg(long)]
    reference: bool,
}

pub fn run(args: ConfigArgs) -> Result<()> {
    if args.reference {
        return super::print(&reference());
    }
    let config = args.settings.load()?;
    let yaml = serde_yaml_ng::to_string(&config).map_err(|error| {
        Error::new(ErrorKind::Internal, "the configuration can't be written").because(error)
    })?;
    super::print(&yaml)
}
