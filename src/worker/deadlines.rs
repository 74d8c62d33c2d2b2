//! How the time limits depend on each other, and how much is left of each.
//!
//! ```text
//! message.timeout < transaction.timeout < session.timeout ≤ max.poll.interval
//! a fetch + the slowest batch + a commit < drain_timeout,   drain_timeout + closing < grace
//! ```
//! The first line keeps a dead worker's transaction from outliving its ownership. The polling
//! thread waits for room for a second at most; its other waits (a revocation's last commit, a rewind)
//! are limited to a share of `max.poll.interval.ms`. The second line describes a clean stop; its last
//! part is checked with the configuration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{Config, LEAVING_MS};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::timeouts::Timeouts;

/// Time to exit once draining is done.
const EXIT_TIME: Duration = Duration::from_secs(2);

/// Minimum time of the last transaction after a drain that took all its time.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// The limits of one worker.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    kafka: Timeouts,
    fetch: Duration,
    linger: Duration,
    drain: Duration,
    grace: Duration,
}

/// The longest duration of each so far.
#[derive(Debug, Default)]
pub struct MaxDurations {
    batch: AtomicU64,
    commit: AtomicU64,
    poll_gap: AtomicU64,
}

impl MaxDurations {
    /// One batch in the model.
    pub fn batch(&self, took: Duration) {
        raise(&self.batch, took);
    }

    /// One transaction, from its begin to its end.
    pub fn commit(&self, took: Duration) {
        raise(&self.commit, took);
    }

    /// From one poll to the next.
    pub fn poll_gap(&self, took: Duration) {
        raise(&self.poll_gap, took);
    }
}

fn raise(longest: &AtomicU64, took: Duration) {
    longest.fetch_max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn read(longest: &AtomicU64) -> f64 {
    Duration::from_millis(longest.load(Ordering::Relaxed)).as_secs_f64()
}

impl Deadlines {
    /// # Errors
    /// `ErrorKind::Config`, naming the two settings that contradict each other.
    pub fn new(config: &Config, kafka: Timeouts) -> Result<Self> {
        let millis = Duration::from_millis;
        let deadlines = Self {
            kafka,
            fetch: millis(config.s3.timeout_ms),
            linger: millis(config.batch.linger_ms),
            drain: millis(config.runtime.drain_timeout_ms),
            grace: millis(config.runtime.termination_grace_ms),
        };
        deadlines.check()?;
        Ok(deadlines)
    }

    fn check(&self) -> Result<()> {
        let Timeouts { message, transaction, session, heartbeat, max_poll } = self.kafka;
        in_order(
            ("kafka.properties.message.timeout.ms", message),
            ("kafka.properties.transaction.timeout.ms", transaction),
            "a record must fail before its transaction does",
        )?;
        in_order(
            ("kafka.properties.heartbeat.interval.ms", heartbeat),
            ("kafka.properties.session.timeout.ms", session),
            "a member must send a heartbeat before its session times out",
        )?;
        in_order(
            // They may be equal.
            (
                "kafka.properties.session.timeout.ms",
                session.saturating_sub(Duration::from_millis(1)),
            ),
            ("kafka.properties.max.poll.interval.ms", max_poll),
            "session.timeout.ms must not exceed max.poll.interval.ms",
        )?;
        if transaction >= session {
            tracing::warn!(
                transaction_timeout_ms = transaction.as_millis(),
                session_timeout_ms = session.as_millis(),
                "transaction.timeout.ms is not below session.timeout.ms: after a crash the next \
                 owner of its partitions waits for the open transaction"
            );
        }
        if self.fetch >= self.drain {
            tracing::warn!(
                s3_timeout_ms = self.fetch.as_millis(),
                drain_timeout_ms = self.drain.as_millis(),
                "s3.timeout_ms is not below runtime.drain_timeout_ms: a stop may leave fetches \
                 behind, for the next owner to do again"
            );
        }
        Ok(())
    }

    /// How long a drain may take.
    pub fn drain(&self) -> Duration {
        self.drain
    }

    /// How long after SIGTERM the last transaction may be open. The rest of the grace period is for
    /// leaving the group.
    pub fn last_commit(&self) -> Duration {
        let left = self.grace.saturating_sub(Duration::from_millis(LEAVING_MS) + EXIT_TIME);
        left.max(self.drain + LAST_COMMIT)
    }

    /// Longest single wait of the polling thread; it never waits more than twice in a row.
    pub fn poll_wait(&self) -> Duration {
        (self.kafka.max_poll / 4).min(Duration::from_secs(10))
    }

    /// Seconds between the slowest operation so far and each limit; negative where a limit is too
    /// short.
    pub fn margins(&self, max_durations: &MaxDurations) -> [(&'static str, f64); 4] {
        let (batch, commit) = (read(&max_durations.batch), read(&max_durations.commit));
        let work = self.fetch.as_secs_f64() + self.linger.as_secs_f64() + batch + commit;
        [
            ("transaction", self.kafka.transaction.as_secs_f64() - commit),
            ("session", self.kafka.session.as_secs_f64() - self.kafka.transaction.as_secs_f64()),
            (
                "max_poll_interval",
                self.kafka.max_poll.as_secs_f64() - read(&max_durations.poll_gap),
            ),
            ("termination", self.drain.as_secs_f64() - work),
        ]
    }
}

fn in_order(
    (shorter, is): (&'static str, Duration),
    (longer, than): (&'static str, Duration),
    reason: &'static str,
) -> Result<()> {
    if !is.is_zero() && is < than {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, reason)
        .with_context("field", shorter)
        .with_context("value", format_args!("{} ms", is.as_millis()))
        .with_context("allowed", format_args!("1 to below {longer}, {} ms", than.as_millis())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Timeouts = Timeouts {
        message: Duration::from_secs(30),
        transaction: Duration::from_secs(40),
        session: Duration::from_secs(45),
        heartbeat: Duration::from_secs(3),
        max_poll: Duration::from_secs(300),
    };

    fn deadlines(kafka: Timeouts) -> Result<Deadlines> {
        let yaml = "kafka: {brokers: 'localhost:9092'}\nmodel: {path: m}";
        Deadlines::new(&serde_yaml_ng::from_str(yaml).unwrap(), kafka)
    }

    #[test]
    fn limits_that_contradict_each_other_are_both_named() {
        let wrong = [
            (
                Timeouts { message: GOOD.transaction, ..GOOD },
                ["message.timeout", "transaction.timeout"],
            ),
            (Timeouts { message: Duration::ZERO, ..GOOD }, ["message.timeout", "0 ms"]),
            (
                Timeouts { heartbeat: GOOD.session, ..GOOD },
                ["heartbeat.interval", "session.timeout"],
            ),
            (Timeouts { max_poll: GOOD.message, ..GOOD }, ["session.timeout", "max.poll.interval"]),
        ];
        assert!(deadlines(GOOD).is_ok());
        assert!(deadlines(Timeouts { max_poll: GOOD.session, ..GOOD }).is_ok());
        for (timeouts, named) in wrong {
            let error = deadlines(timeouts).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.to_string();
            assert!(named.iter().all(|name| message.contains(name)), "{message}");
        }
    }

    #[test]
    fn margins_are_measured_from_the_slowest() {
        let deadlines = deadlines(GOOD).unwrap();
        let max_durations = MaxDurations::default();
        let before = deadlines.margins(&max_durations);
        assert_eq!(before[0], ("transaction", 40.0));
        assert_eq!(before[1], ("session", 5.0));
        assert_eq!(before[2], ("max_poll_interval", 300.0));
        max_durations.commit(Duration::from_secs(3));
        max_durations.commit(Duration::from_secs(1));
        max_durations.batch(Duration::from_secs(9));
        max_durations.poll_gap(Duration::from_secs(1));
        let after = deadlines.margins(&max_durations);
        assert_eq!(after[0], ("transaction", 37.0));
        assert_eq!(after[2], ("max_poll_interval", 299.0));
        assert!(after[3].1 < 0.0, "10 s to fetch, 9 s and 3 s are more than 20 s: {after:?}");
    }

    #[test]
    fn the_last_transaction_has_what_the_grace_leaves() {
        let mut limits = deadlines(GOOD).unwrap();
        assert_eq!(
            limits.last_commit(),
            Duration::from_secs(23),
            "5 s to leave, 2 s to exit of 30"
        );
        limits.drain = Duration::from_secs(25);
        assert_eq!(limits.last_commit(), Duration::from_secs(26));
    }

    #[test]
    fn the_polling_thread_waits_for_a_share_of_its_limit() {
        assert_eq!(deadlines(GOOD).unwrap().poll_wait(), Duration::from_secs(10));
        let short =
            Timeouts { session: Duration::from_secs(6), max_poll: Duration::from_secs(8), ..GOOD };
        assert_eq!(deadlines(short).unwrap().poll_wait(), Duration::from_secs(2));
    }
}
