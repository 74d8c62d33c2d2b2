//! `fusioncap healthcheck`: asks a worker's port, in containers without a shell and an HTTP client:
//! the image's HEALTHCHECK and the pod of `helm test`.

use std::time::{Duration, Instant};

use clap::Args;

use super::output;
use super::settings::HttpSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::probe;

/// Time limit of one request. A worker answers its probes from memory.
const DEADLINE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_secs(1);
/// A counter that every worker shows from the start.
const COUNTER: &str = "fusioncap_captions_total";

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    settings: HttpSettings,
    /// Ask this worker [default: the one on this machine, at http.listen]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Ask /readyz instead of /livez
    #[arg(long)]
    ready: bool,
    /// Check that its metrics can be read, too
    #[arg(long)]
    metrics: bool,
    /// Ask again until the worker is healthy, for at most this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    wait: u32,
}

pub fn run(args: HealthcheckArgs) -> Result<()> {
    let address = match args.address {
        Some(address) => address,
        None => probe::own_address(args.settings.load()?.listen).to_string(),
    };
    let path = if args.ready { "/readyz" } else { "/livez" };
    let end = Instant::now() + Duration::from_secs(args.wait.into());
    let answer = loop {
        match probe::get(&address, path, DEADLINE) {
            Err(_) if Instant::now() + PAUSE < end => std::thread::sleep(PAUSE),
            outcome => break outcome?,
        }
    };
    if args.metrics && !probe::get(&address, "/metrics", DEADLINE)?.contains(COUNTER) {
        return Err(Error::new(ErrorKind::Io, "the metrics are not those of a worker")
            .with_context("address", address)
            .with_context("missing", COUNTER));
    }
    output::print(&answer)
}
