//! How far the worker is behind: the messages of its partitions that are not answered yet, and how
//! many seconds it takes for as many at the pace of the last minute of work.
//!
//! Seconds are what autoscaling wants to hold: a thousand small photos are soon done, a thousand
//! large ones are not. The end of a partition is librdkafka's own note of it, as of its last fetch:
//! nothing is asked of the brokers, and while the partitions are paused it may be behind.

use std::ffi::CString;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::bindings::{self, rd_kafka_resp_err_t};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use crate::worker::shared::Shared;

const EVERY: Duration = Duration::from_secs(1);
/// Time in which a change of pace is taken in by two thirds.
const WINDOW: Duration = Duration::from_secs(60);
/// Messages a second; below it the seconds would say nothing any more.
const SLOWEST: f64 = 1e-3;

#[derive(Debug)]
pub struct Backlog {
    measured: Instant,
    /// Messages that were answered until then.
    answered: u64,
    pace: Pace,
}

/// Messages a second while there were more than the worker had taken in.
#[derive(Debug, Default)]
struct Pace(Option<f64>);

impl Backlog {
    pub fn new() -> Self {
        Self { measured: Instant::now(), answered: 0, pace: Pace::default() }
    }

    /// Measures, at most once a second.
    pub fn measure<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        topic: &str,
        shared: &Shared,
    ) {
        let elapsed = self.measured.elapsed();
        if elapsed < EVERY {
            return;
        }
        let in_flight = shared.in_flight() as u64;
        let answered = shared.tally.messages.load(Ordering::Relaxed).saturating_sub(in_flight);
        let done = answered.saturating_sub(self.answered);
        (self.measured, self.answered) = (Instant::now(), answered);
        let unread = unread(consumer, topic);
        let waiting = unread.saturating_add(in_flight);
        // An outage of the store says nothing of the pace, nor does a time in which the worker
        // keeps up: it is as fast then as messages come.
        if unread > 0 && !shared.breaker.is_open() {
            self.pace.note(done, elapsed);
        }
        shared.metrics.backlog_messages.record(waiting, &[]);
        if let Some(seconds) = self.pace.seconds(waiting) {
            shared.metrics.backlog_seconds.record(seconds, &[]);
        }
    }
}

impl Pace {
    fn note(&mut self, done: u64, elapsed: Duration) {
        let now = done as f64 / elapsed.as_secs_f64();
        let weight = 1.0 - (-elapsed.as_secs_f64() / WINDOW.as_secs_f64()).exp();
        self.0 = match self.0 {
            // Nothing is done yet: the first messages are under way.
            None if done == 0 => None,
            None => Some(now),
            Some(before) => Some(before + weight * (now - before)),
        };
    }

    /// How long so many messages take; None where none was ever done.
    fn seconds(&self, messages: u64) -> Option<f64> {
        match (messages, self.0) {
            (0, _) => Some(0.0),
            (_, None) => None,
            (messages, Some(pace)) => Some(messages as f64 / pace.max(SLOWEST)),
        }
    }
}

/// Messages of the consumer's partitions that it has not read, as far as is known.
fn unread<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str) -> u64 {
    let (Ok(positions), Ok(name)) = (consumer.position(), CString::new(topic)) else {
        return 0;
    };
    let of_one = |partition, offset| {
        let Offset::Offset(next) = offset else {
            return 0;
        };
        let (mut low, mut high) = (0, 0);
        // SAFETY: the client and the name outlive the call, which writes two numbers.
        let found = unsafe {
            bindings::rd_kafka_get_watermark_offsets(
                consumer.client().native_ptr(),
                name.as_ptr(),
                partition,
                &raw mut low,
                &raw mut high,
            )
        };
        match found {
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => u64::try_from(high - next),
            _ => Ok(0),
        }
        .unwrap_or(0)
    };
    let elements = positions.elements();
    elements.iter().map(|element| of_one(element.partition(), element.offset())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_messages_there_is_no_delay_and_without_a_pace_no_answer() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds(0), Some(0.0));
        assert_eq!(pace.seconds(7), None);
        pace.note(0, SECOND);
        assert_eq!(pace.seconds(7), None);
        pace.note(50, SECOND);
        assert_eq!(pace.seconds(100), Some(2.0));
    }

    #[test]
    fn a_change_of_pace_is_taken_in_within_minutes() {
        let mut pace = Pace::default();
        pace.note(100, SECOND);
        for _ in 0..WINDOW.as_secs() {
            pace.note(20, SECOND);
        }
        let seconds = pace.seconds(100).unwrap();
        assert!((1.5..3.0).contains(&seconds), "{seconds}");
        for _ in 0..10 * WINDOW.as_secs() {
            pace.note(0, SECOND);
        }
        let seconds = pace.seconds(100).unwrap();
        assert!((10_000.0..=100.0 / SLOWEST).contains(&seconds), "{seconds}");
    }
}
