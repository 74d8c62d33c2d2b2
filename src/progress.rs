//! Progress of long work on stderr: a bar on a terminal, elsewhere a line now and then.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use parking_lot::Mutex;

/// Time between two lines where stderr is not a terminal.
const INTERVAL: Duration = Duration::from_secs(15);

/// Counts the units of work that are done. Dropping it clears the bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    unit: &'static str,
    /// Time of the last line; absent where none is written.
    last_line: Option<Mutex<Instant>>,
}

impl Progress {
    /// Work called `what` of `total` units; `unit` is their plural: "images".
    pub fn new(what: impl Into<Cow<'static, str>>, unit: &'static str, total: u64) -> Self {
        let bar = ProgressBar::new(total).with_prefix(what).with_finish(ProgressFinish::AndClear);
        let template =
            format!("{{prefix}} {{wide_bar}} {{pos}} of {{len}} {unit}, {{eta}} left {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        let last_line = bar.is_hidden().then(|| Mutex::new(Instant::now()));
        Self { bar, unit, last_line }
    }

    /// Shows nothing but what [`Self::note`] writes.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), unit: "", last_line: None }
    }

    /// `done` units were done before: by an earlier run, at an unknown pace.
    #[must_use]
    pub fn resumed_at(self, done: u64) -> Self {
        self.bar.set_position(done);
        self.bar.reset_eta();
        self
    }

    /// `units` more are done.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
        self.write_line();
    }

    /// `done` of all units are done; `detail` stands behind the count.
    pub fn set(&self, done: u64, detail: String) {
        self.bar.set_message(detail);
        self.bar.set_position(done);
        self.write_line();
    }

    /// Writes a line that stays.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| announce(line));
    }

    /// All work is done. Says how long it took where it took long enough for lines.
    pub fn finish(self) {
        if self.last_line.is_some() && self.bar.elapsed() >= INTERVAL {
            let seconds = self.bar.elapsed().as_secs();
            announce(&format!("{}: done in {seconds} s", self.bar.prefix()));
        }
    }

    fn write_line(&self) {
        let Some(mut last) = self.last_line.as_ref().map(Mutex::lock) else {
            return;
        };
        if last.elapsed() < INTERVAL {
            return;
        }
        *last = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let line = format!(
            "{}: {done} of {total} {}, {} s left {}",
            self.bar.prefix(),
            self.unit,
            self.bar.eta().as_secs(),
            self.bar.message()
        );
        announce(line.trim_end());
    }
}

/// Writes a line to stderr: what begins now, for example.
pub fn announce(line: &str) {
    // Nobody reads a closed stderr.
    let _ = writeln!(std::io::stderr(), "{line}");
}
