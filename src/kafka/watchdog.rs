//! Ends the process when a blocking call of the transaction API never returns.
//!
//! Commit and abort take an infinite timeout, since any other loses track of the transaction's
//! state, and a stuck call can't be cancelled. The broker ends the transaction by itself, and the
//! process's successor does its work again: ending the process loses nothing.
//!
//! While no broker can be reached at all, a call that waits is not stuck: it continues when a broker
//! is back, and a new process could do no more.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::Health;

const TICK: Duration = Duration::from_millis(500);

/// How long one broker may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Called with the name of a late call. Returns whether to wait for as long again.
type OnLate = Box<dyn Fn(&'static str) -> bool + Send>;

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
    /// Ends the process with 1 when a call takes longer than `limit` although one of `brokers`
    /// (`host:port[,host:port...]`) can be reached; until one can, the process is not ready.
    pub fn start(limit: Duration, brokers: String, health: Arc<Health>) -> Result<Self> {
        Self::start_with(
            limit,
            TICK,
            Box::new(move |name| {
                if !is_any_reachable(&brokers) {
                    tracing::warn!(call = name, brokers, "no broker can be reached: still waiting");
                    health.set_degraded("no broker of kafka can be reached");
                    return true;
                }
                tracing::error!(
                    call = name,
                    limit_ms = limit.as_millis(),
                    "a kafka call is stuck, ending the process"
                );
                eprintln!("error: a kafka call is stuck (call: {name}, limit: {limit:?})");
                crate::exit(1);
            }),
        )
    }

    fn start_with(limit: Duration, tick: Duration, on_late: OnLate) -> Result<Self> {
        let call: Arc<Mutex<Option<Call>>> = Arc::default();
        let watched = Arc::downgrade(&call);
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                let mut patient_since = Instant::now();
                while let Some(call) = watched.upgrade() {
                    let now = *call.lock();
                    drop(call);
                    if let Some(Call { name, since }) = now
                        && since.max(patient_since).elapsed() > limit
                    {
                        if !on_late(name) {
                            return;
                        }
                        patient_since = Instant::now();
                    }
                    thread::sleep(tick);
                }
            })
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "can't start the watchdog").with_source(error)
            })?;
        Ok(Self { call })
    }

    /// Runs `blocking` under watch.
    pub fn watch<T>(&self, name: &'static str, blocking: impl FnOnce() -> T) -> T {
        self.set_call(Some(Call { name, since: Instant::now() }));
        let value = blocking();
        self.set_call(None);
        value
    }

    fn set_call(&self, call: Option<Call>) {
        *self.call.lock() = call;
    }
}

/// Whether one of `brokers` accepts connections.
fn is_any_reachable(brokers: &str) -> bool {
    brokers.split(',').any(|broker| {
        let resolved = broker.trim().to_socket_addrs();
        resolved.is_ok_and(|mut addresses| {
            addresses.any(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok())
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_a_stuck_call_is_noticed() {
        let (sender, late_calls) = channel();
        let on_late = Box::new(move |name| {
            sender.send(name).unwrap();
            false
        });
        let limit = Duration::from_millis(500);
        let watchdog = Watchdog::start_with(limit, Duration::from_millis(5), on_late).unwrap();
        for _ in 0..5 {
            watchdog.watch("quick", || thread::sleep(Duration::from_millis(150)));
        }
        thread::sleep(limit * 2);
        assert!(late_calls.try_recv().is_err(), "neither quick calls nor pauses between them");
        watchdog.watch("stuck", || thread::sleep(limit * 3));
        assert_eq!(late_calls.recv_timeout(limit), Ok("stuck"));
    }

    #[test]
    fn a_late_call_is_waited_for_again_and_again() {
        let (sender, late_calls) = channel();
        let on_late = Box::new(move |name| {
            sender.send(name).unwrap();
            true
        });
        let limit = Duration::from_millis(50);
        let watchdog = Watchdog::start_with(limit, Duration::from_millis(5), on_late).unwrap();
        watchdog.watch("late", || thread::sleep(limit * 6));
        let times = late_calls.try_iter().count();
        assert!((2..=6).contains(&times), "asked again after each limit: {times}");
    }

    #[test]
    fn brokers_are_reached_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(is_any_reachable(&format!("127.0.0.1:1, {address}")));
        drop(listener);
        assert!(!is_any_reachable(&format!("127.0.0.1:1,{address},no.such.host.invalid:9092")));
    }
}
