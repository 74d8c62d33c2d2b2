//! `fusioncap train`: a captioner from text alone.

use std::path::PathBuf;

use clap::Args;

use crate::config::Runtime;
use crate::error::Result;
use crate::train::settings::{DEFAULTS, Settings};
use crate::train::{self, Request};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Encoder directory (`fusioncap encoder` makes one)
    #[arg(long, value_name = "DIR", required_unless_present = "print_settings")]
    encoder: Option<PathBuf>,
    /// Captions, one a line; `.zst` is decompressed; may be given several times
    #[arg(long, value_name = "FILE", required_unless_present = "print_settings")]
    corpus: Vec<PathBuf>,
    /// Where to write the bundle
    #[arg(long, value_name = "DIR", required_unless_present = "print_settings")]
    out: Option<PathBuf>,
    /// Hyper-parameters as TOML, laid over the defaults
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Embeddings and checkpoints, kept between runs
    #[arg(long, value_name = "DIR", default_value = ".cache/train")]
    cache: PathBuf,
    /// Continue from the newest checkpoint in the cache
    #[arg(long)]
    resume: bool,
    /// Print the default settings with their comments, and stop
    #[arg(long)]
    print_settings: bool,
}

pub fn run(args: TrainArgs) -> Result<()> {
    if args.print_settings {
        return super::print(DEFAULTS);
    }
    train::run(&Request {
        encoder: args.encoder.unwrap_or_default(),
        corpora: args.corpus,
        out: args.out.unwrap_or_default(),
        cache: args.cache,
        settings: Settings::load(args.settings.as_deref())?,
        runtime: Runtime::default(),
        resume: args.resume,
    })
}
