//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(15);

pub struct Progress {
    what: &'static str,
    total: usize,
    started: Instant,
    first: Option<usize>,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(what: &'static str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(what, total));
        let now = Instant::now();
        Self { what, total, started: now, first: None, last_line: now, bar }
    }

    /// `done` of the total are done; `detail` says how well.
    pub fn update(&mut self, done: usize, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(detail.to_owned());
            return;
        }
        let first = *self.first.get_or_insert(done);
        if self.last_line.elapsed() < INTERVAL {
            return;
        }
        self.last_line = Instant::now();
        let rate = (done - first) as f64 / self.started.elapsed().as_secs_f64();
        let left = (self.total.saturating_sub(done)) as f64 / rate.max(1e-9);
        eprintln!("{}: {done} of {} ({:.0} s left) {detail}", self.what, self.total, left.min(1e6));
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
            return;
        }
        eprintln!("{}: done in {:.0} s", self.what, self.started.elapsed().as_secs_f64());
    }
}

fn bar(what: &'static str, total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_prefix(what);
    let template = "{prefix} {wide_bar} {pos}/{len} {eta} left {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
