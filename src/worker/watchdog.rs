//! Ends the process when a blocking call of the transaction API never comes back.
//!
//! Commit and abort take an infinite timeout, since any other loses track of the transaction's
//! state, and a stuck one can't be cancelled. The broker ends the transaction by itself, and the
//! worker's successor reads its references again: ending the process loses nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

const TICK: Duration = Duration::from_millis(500);

/// What is called when a call is stuck, with its name.
type Expire = Box<dyn Fn(&'static str) + Send>;

/// Watches one thread's calls, one at a time, until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    call: Arc<Mutex<Option<Call>>>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    name: &'static str,
    since: Instant,
}

impl Watchdog {
    /// Ends the process with 1 when a call takes longer than `limit`.
    pub fn start(limit: Duration) -> Result<Self> {
        Self::start_with(
            limit,
            TICK,
            Box::new(move |name| {
                tracing::error!(
                    call = name,
                    limit_ms = limit.as_millis(),
                    "a kafka call is stuck, ending the process"
                );
                eprintln!("error: a kafka call is stuck (call: {name}, limit: {limit:?})");
                std::process::exit(1);
            }),
        )
    }

    fn start_with(limit: Duration, tick: Duration, expire: Expire) -> Result<Self> {
        let call: Arc<Mutex<Option<Call>>> = Arc::default();
        let watched = Arc::downgrade(&call);
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                while let Some(call) = watched.upgrade() {
                    let now = *call.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(call);
                    if let Some(Call { name, since }) = now
                        && since.elapsed() > limit
                    {
                        expire(name);
                        return;
                    }
                    thread::sleep(tick);
                }
            })
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "can't start the watchdog").because(error)
            })?;
        Ok(Self { call })
    }

    /// Runs `blocking` under watch.
    pub fn watch<T>(&self, name: &'static str, blocking: impl FnOnce() -> T) -> T {
        self.set(Some(Call { name, since: Instant::now() }));
        let value = blocking();
        self.set(None);
        value
    }

    fn set(&self, call: Option<Call>) {
        *self.call.lock().unwrap_or_else(PoisonError::into_inner) = call;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_a_stuck_call_is_noticed() {
        let (told, heard) = channel();
        let expire = Box::new(move |name| told.send(name).unwrap());
        let limit = Duration::from_millis(100);
        let watchdog = Watchdog::start_with(limit, Duration::from_millis(5), expire).unwrap();
        for _ in 0..5 {
            watchdog.watch("quick", || thread::sleep(Duration::from_millis(30)));
        }
        thread::sleep(limit * 2);
        assert!(heard.try_recv().is_err(), "neither quick calls nor pauses between them");
        watchdog.watch("stuck", || thread::sleep(limit * 3));
        assert_eq!(heard.recv_timeout(limit), Ok("stuck"));
    }
}
