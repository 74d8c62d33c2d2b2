//! How far reading has come: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(15);
/// Offsets between two looks at the clock, or at the terminal.
const STRIDE: u64 = 1024;

/// Counts offsets; the bar goes when this is dropped.
pub struct Progress {
    what: String,
    total: u64,
    done: u64,
    shown: u64,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(what: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(what, total));
        Self { what: what.to_owned(), total, done: 0, shown: 0, last_line: Instant::now(), bar }
    }

    pub fn advance(&mut self, offsets: u64) {
        self.done = self.done.saturating_add(offsets);
        if self.done - self.shown < STRIDE {
            return;
        }
        self.shown = self.done;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.last_line.elapsed() >= INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}: {} of {} offsets read", self.what, self.done, self.total);
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_prefix(what.to_owned());
    match ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} offsets, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
