//! `fusioncap config`: the effective configuration as YAML, with secrets masked.

use super::output;
use crate::cli::settings::Settings;
use crate::config::reference;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    settings: Settings,
    /// Print a description of every field as Markdown instead (docs/configuration.md)
    #[arg(long)]
    reference: bool,
}

pub fn run(args: ConfigArgs) -> Result<()> {
    if args.reference {
        return output::print(&reference());
    }
    let config = args.settings.load()?;
    let yaml = serde_yaml_ng::to_string(&config).map_err(|error| {
        Error::new(ErrorKind::Internal, "can't write the configuration").with_source(error)
    })?;
    output::print(&yaml)
}
