//! What each stage did when, as a file in Chrome's trace event format (the JSON array form), which
//! `chrome://tracing` and Perfetto show: one row a thread, and one for each request under way at
//! once.
//!
//! Written as it happens, by a thread of its own; the file can be read whenever the process ends,
//! since the format allows the closing bracket to be missing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};

/// Numbers threads in the order in which they are first seen.
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// Takes spans until it is dropped, which waits for the file.
#[derive(Debug)]
pub struct Profile {
    began: Instant,
    ids: AtomicU64,
    events: Option<Sender<Value>>,
    writer: Option<JoinHandle<()>>,
}

impl Profile {
    /// Begins the file at `path`; one that is there is replaced.
    ///
    /// # Errors
    /// `ErrorKind::Config` where it can't be written.
    pub fn create(path: &Path) -> Result<Self> {
        let unusable = |error: std::io::Error| {
            Error::new(ErrorKind::Config, "--profile can't be written")
                .with("value", path.display())
                .with("allowed", "a file in a folder that exists")
                .because(error)
        };
        let file = BufWriter::new(File::create(path).map_err(unusable)?);
        let (events, inbox) = channel();
        let shown = path.display().to_string();
        let writer = std::thread::Builder::new()
            .name("profile".into())
            .spawn(move || {
                if let Err(error) = write(file, &inbox) {
                    tracing::warn!(%error, path = shown, "the profile is not complete");
                }
            })
            .map_err(unusable)?;
        Ok(Self {
            began: Instant::now(),
            ids: AtomicU64::new(1),
            events: Some(events),
            writer: Some(writer),
        })
    }

    /// Work of `stage` on this thread that took `elapsed` from `since`.
    pub fn span(&self, stage: &'static str, since: Instant, elapsed: Duration) {
        let thread = THREAD.with(|number| *number);
        self.send(json!({
            "name": stage, "cat": "stage", "ph": "X", "pid": 1, "tid": thread,
            "ts": self.micros(since), "dur": elapsed.as_secs_f64() * 1e6,
        }));
    }

    /// As [`Self::span`] for work that is on no thread, and of which more may go on at once.
    pub fn request(&self, stage: &'static str, since: Instant, elapsed: Duration) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        for (phase, at) in [("b", since), ("e", since + elapsed)] {
            self.send(json!({
                "name": stage, "cat": stage, "ph": phase, "id": id, "pid": 1, "tid": 0,
                "ts": self.micros(at),
            }));
        }
    }

    fn micros(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64() * 1e6
    }

    fn send(&self, event: Value) {
        if let Some(events) = &self.events {
            // The writer ends first only where the disk is full, which it has said.
            let _ = events.send(event);
        }
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        drop(self.events.take());
        if let Some(writer) = self.writer.take() {
            // It has told of its own errors.
            let _ = writer.join();
        }
    }
}

fn write(mut file: impl Write, inbox: &Receiver<Value>) -> std::io::Result<()> {
    let about = json!({
        "name": "process_name", "ph": "M", "pid": 1, "args": { "name": "fusioncap worker" },
    });
    write!(file, "[\n{about}")?;
    while let Ok(event) = inbox.recv() {
        write!(file, ",\n{event}")?;
    }
    writeln!(file, "\n]")?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stand_in_the_file_as_chrome_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let profile = Profile::create(&path).unwrap();
        let since = Instant::now();
        profile.span("decode", since, Duration::from_micros(250));
        profile.request("fetch", since, Duration::from_millis(3));
        drop(profile);
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(events.len(), 4);
        assert_eq!((&events[1]["name"], &events[1]["ph"]), (&json!("decode"), &json!("X")));
        assert_eq!(events[1]["dur"].as_f64().map(f64::round), Some(250.0));
        let (begin, end) = (&events[2], &events[3]);
        assert_eq!((&begin["ph"], &end["ph"]), (&json!("b"), &json!("e")));
        assert_eq!(begin["id"], end["id"]);
        let took = end["ts"].as_f64().unwrap() - begin["ts"].as_f64().unwrap();
        assert!((took - 3_000.0).abs() < 1.0, "{took}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = Profile::create(Path::new("/nowhere/out.json")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--profile"), "{error}");
    }
}
