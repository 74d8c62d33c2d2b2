//! `fusioncap healthcheck`: one question to a worker's port, for whoever has neither a shell nor a
//! client for HTTP: the image's HEALTHCHECK, and the pod of `helm test`.

use std::time::{Duration, Instant};

use clap::Args;

use super::settings::HttpSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::probe;

/// How long one answer may take. A worker answers its probes from memory.
const DEADLINE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_secs(1);
/// A counter that every worker has from the start.
const COUNTER: &str = "fusioncap_captions_total";

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    settings: HttpSettings,
    /// Ask this worker [default: the one on this machine, at http.listen]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Ask /readyz, and not /livez
    #[arg(long)]
    ready: bool,
    /// Its metrics must be readable as well
    #[arg(long)]
    metrics: bool,
    /// Ask again for so many seconds until the answer is yes
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
        return Err(Error::new(ErrorKind::Io, "its metrics are not a worker's")
            .with("address", address)
            .with("missing", COUNTER));
    }
    super::print(&answer)
}
