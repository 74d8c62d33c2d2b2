//! The settings of a run: from the environment, or the short form.

use std::env;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Faults for at least so long are the long form, of which more is asked.
const LONG: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct Settings {
    /// `FUSIONCAP_TEST_CHAOS_SECONDS`: for how long there are faults, at least.
    pub faults: Duration,
    /// `FUSIONCAP_TEST_CHAOS_REFERENCES`: how many there are, at least.
    pub references: usize,
    /// `FUSIONCAP_TEST_CHAOS_SEED`: the same seed, the same faults and victims.
    pub seed: u64,
    /// `FUSIONCAP_TEST_CHAOS_REPORT`: the file that gets the report as JSON.
    pub report: Option<PathBuf>,
    /// `FUSIONCAP_TEST_CHAOS_LOGS`: the folder that keeps the workers' logs, `target/tmp/chaos` by
    /// default: a failure may not come again with the same seed.
    pub logs: PathBuf,
    /// `FUSIONCAP_TEST_CHAOS_BACKLOG`: how many unanswered references there are at a time.
    pub backlog: usize,
    /// `FUSIONCAP_TEST_CHAOS_BATCH`: the workers' `batch.size`.
    pub batch: usize,
}

impl Settings {
    pub fn from_environment() -> Self {
        Self {
            faults: Duration::from_secs(variable("SECONDS").unwrap_or(90)),
            references: variable("REFERENCES").unwrap_or(6_000),
            seed: variable("SEED").unwrap_or_else(rand::random),
            report: variable("REPORT"),
            logs: variable("LOGS")
                .unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos")),
            backlog: variable("BACKLOG").unwrap_or(1_500),
            batch: variable("BATCH").unwrap_or(16),
        }
    }

    pub fn is_long(&self) -> bool {
        self.faults >= LONG
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let name = format!("FUSIONCAP_TEST_CHAOS_{name}");
    let text = env::var(&name).ok()?;
    let value = text.parse().ok();
    assert!(value.is_some(), "{name} can't be '{text}'");
    value
}
