//! `fusioncap train`: trains a captioner from text alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::Args;

use super::output;
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::train::device::DeviceKind;
use crate::train::settings::{DEFAULTS, Settings};
use crate::train::{self, Request};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Encoder directory (`fusioncap clip import` and `fusioncap encoder` make them)
    #[arg(long, value_name = "DIR", required_unless_present = "print_settings")]
    encoder: Option<PathBuf>,
    /// Captions, one per line, or JSON Lines (`.jsonl`) with a `caption`; `.zst` is decompressed; may
    /// be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "print_settings")]
    corpus: Vec<PathBuf>,
    /// Directory for the bundle
    #[arg(long, value_name = "DIR", required_unless_present = "print_settings")]
    out: Option<PathBuf>,
    /// Bundle to start from, with its weights and vocabulary: for fine-tuning on your corpus
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Put the encoder's text tower into the bundle, for CLIPScore
    #[arg(long)]
    with_text_tower: bool,
    /// TOML file with hyper-parameters, which override the defaults
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Text for the model card, such as your measurements
    #[arg(long, value_name = "FILE")]
    notes: Option<PathBuf>,
    /// Device for the training
    #[arg(long, value_enum, default_value_t)]
    device: DeviceKind,
    /// Directory of embeddings and checkpoints, kept between runs
    #[arg(long, value_name = "DIR", default_value = ".cache/train")]
    cache: PathBuf,
    /// Continue from the newest checkpoint in the cache
    #[arg(long)]
    resume: bool,
    /// Print the default settings with their comments and exit
    #[arg(long)]
    print_settings: bool,
}

pub fn run(args: TrainArgs) -> Result<()> {
    if args.print_settings {
        return output::print(DEFAULTS);
    }
    let stop = Arc::new(AtomicBool::new(false));
    listen(Arc::clone(&stop))?;
    let request = Request {
        encoder: args.encoder.unwrap_or_default(),
        corpora: args.corpus,
        out: args.out.unwrap_or_default(),
        checkpoint: args.cache.join("checkpoint"),
        cache: args.cache,
        settings: Settings::load(args.settings.as_deref())?,
        from: args.from,
        notes: args.notes,
        text_tower: args.with_text_tower,
        runtime: Runtime::default(),
        device: args.device,
        resume: args.resume,
        stop,
    };
    train::run(&request)?;
    output::print(&format!("wrote {}\n", request.out.display()))
}

/// The first Ctrl-C sets `stop`; a second one ends the process at once.
pub(super) fn listen(stop: Arc<AtomicBool>) -> Result<()> {
    let failed = |error| Error::new(ErrorKind::Io, "can't listen for Ctrl-C").with_source(error);
    let signals =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let wait = move || {
        signals.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    crate::exit(130);
                }
                eprintln!(
                    "interrupted: stopping after the current step; interrupt again to stop at once"
                );
            }
        });
    };
    thread::Builder::new().name("ctrl-c".into()).spawn(wait).map_err(failed)?;
    Ok(())
}
