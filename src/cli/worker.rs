//! `fusioncap worker`: runs the worker in the foreground until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::bundle::source::{Snapshot, Source};
use crate::cli::settings::Settings;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::s3::Store;
use crate::telemetry::{self, Health, Instruments, http};
use crate::worker::{self, InitialModel};

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    settings: Settings,
    /// Directory for a model from s3:// while the worker runs [default: the temporary directory]
    #[arg(long, value_name = "DIR", env = "FUSIONCAP_MODEL_DIR")]
    model_dir: Option<PathBuf>,
}

pub fn run(args: WorkerArgs) -> Result<()> {
    let config = args.settings.load()?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Error::new(ErrorKind::Io, "can't start a runtime").with_source(error))?;
    let outcome = runtime.block_on(serve(config, args.model_dir));
    // Waiting for a hung decoder would never end.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config, model_dir: Option<PathBuf>) -> Result<()> {
    let telemetry = telemetry::init()?;
    let health = Arc::new(Health::default());
    health.set_not_ready("loading the model");
    let registry = telemetry.registry();
    let probes = http::serve(config.http.listen, Arc::clone(&health), registry).await?;
    let shutdown = CancellationToken::new();
    let signals = stop_on_signals(shutdown.clone())?;
    let instruments = Instruments {
        metrics: telemetry.metrics(),
        health,
        tracer: telemetry.tracer(),
        meter: telemetry.meter(),
    };
    let outcome = work(config, model_dir, instruments, shutdown).await;
    signals.abort();
    probes.shutdown().await;
    telemetry.shutdown().await;
    outcome
}

async fn work(
    config: Config,
    model_dir: Option<PathBuf>,
    instruments: Instruments,
    shutdown: CancellationToken,
) -> Result<()> {
    let (bundle, fetched) = open(&config, model_dir).await?;
    let settings = config.clone();
    let engine = tokio::task::spawn_blocking(move || {
        Engine::load(bundle, &settings.runtime, &settings.model, settings.batch.size)
    })
    .await
    .map_err(|error| Error::new(ErrorKind::Internal, "loading panicked").with_source(error))??;
    tracing::info!(model = engine.bundle().digest(), path = config.model.path, "model loaded");
    instruments.health.set_not_ready("connecting to kafka");
    let (store, snapshot) = match fetched {
        Some((store, snapshot)) => (store, Some(snapshot)),
        None => (Store::connect(&config.s3).await?, None),
    };
    worker::run(config, InitialModel { engine, snapshot }, store, instruments, shutdown).await?;
    Ok(())
}

/// Opens the bundle at `model.path`; one in S3 comes with the store and the snapshot that it was
/// fetched from.
async fn open(
    config: &Config,
    model_dir: Option<PathBuf>,
) -> Result<(Bundle, Option<(Store, Snapshot)>)> {
    let Some(dir) = config.model.directory()? else {
        let source = Source::new(config, model_dir.unwrap_or_else(std::env::temp_dir));
        let store = Store::connect(&config.s3).await?;
        let (bundle, snapshot) = source.fetch(&store).await?;
        return Ok((bundle, Some((store, snapshot))));
    };
    let (dir, settings) = (dir.to_path_buf(), config.clone());
    let opening = tokio::task::spawn_blocking(move || {
        Bundle::choose(&dir, settings.model.precision, &settings.runtime)
    });
    let bundle = opening.await.map_err(|error| {
        Error::new(ErrorKind::Internal, "opening the model panicked").with_source(error)
    })??;
    Ok((bundle, None))
}

/// Cancels `shutdown` at the first SIGTERM or SIGINT; the second one ends the process at once.
fn stop_on_signals(shutdown: CancellationToken) -> Result<tokio::task::JoinHandle<()>> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Error::new(ErrorKind::Internal, "can't listen to signals").with_source(error)
        })
    };
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "shutting down");
        shutdown.cancel();
        let name = next().await;
        tracing::warn!(signal = name, "ending at once: unfinished work is left to the next worker");
        crate::exit(1);
    }))
}
