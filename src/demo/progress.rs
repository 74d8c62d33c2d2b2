//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::borrow::Cow;
use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines that a count writes where there is no terminal.
const LINES: usize = 10;

/// Where progress is shown.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    pub fn on_stderr() -> Self {
        Self { terminal: stderr().is_terminal() }
    }

    /// Says what begins now.
    pub fn step(&self, what: impl Into<Cow<'static, str>>) {
        eprintln!("{}", what.into());
    }

    /// Counts `total` images.
    pub fn count(&self, total: usize) -> Counter {
        let target =
            if self.terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} images  {elapsed}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Counter { bar, plain: !self.terminal, done: AtomicUsize::new(0), total }
    }
}

/// Counts images; the bar goes when this is dropped.
#[derive(Debug)]
pub struct Counter {
    bar: ProgressBar,
    plain: bool,
    done: AtomicUsize,
    total: usize,
}

impl Counter {
    pub fn advance(&self) {
        self.bar.inc(1);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.plain && is_milestone(done, self.total) {
            eprintln!("{done} of {} images", self.total);
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn is_milestone(done: usize, total: usize) -> bool {
    done * LINES / total.max(1) > (done - 1) * LINES / total.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_few_and_end_with_the_last() {
        for total in [1, 3, 10, 13, 1000] {
            let lines: Vec<_> = (1..=total).filter(|done| is_milestone(*done, total)).collect();
            assert_eq!(lines.len(), total.min(LINES));
            assert_eq!(lines.last(), Some(&total));
        }
    }
}
