//! Consumer lag: the messages of the worker's partitions that are not answered yet, and the seconds
//! that they take at the processing rate of the last minute of work.
//!
//! Autoscaling holds the seconds: a thousand small photos are soon done, a thousand large ones are
//! not. The end of a partition is the one that librdkafka has noted at its last fetch: it may be old
//! while the partitions are paused.

use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::bindings::{self, rd_kafka_resp_err_t};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use crate::worker::consume::start_offsets::StartOffsets;
use crate::worker::telemetry::Observer;

const INTERVAL: Duration = Duration::from_secs(1);
/// Time constant of the moving average.
const WINDOW: Duration = Duration::from_secs(60);
/// Lowest rate in messages a second: it bounds the seconds.
const MIN_RATE: f64 = 1e-3;

#[derive(Debug)]
pub struct ConsumerLag {
    topic: String,
    measured: Instant,
    /// Messages that were answered until then.
    answered: u64,
    rate: ProcessingRate,
}

/// Messages per second, measured only while unread messages wait.
#[derive(Debug, Default)]
struct ProcessingRate {
    /// None while nothing was ever done.
    now: Option<f64>,
    /// Time that is in it, in seconds.
    noted: f64,
}

impl ConsumerLag {
    pub fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            measured: Instant::now(),
            answered: 0,
            rate: ProcessingRate::default(),
        }
    }

    /// Measures, at most once a second. `held` messages are read and not answered yet.
    pub fn measure<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        starts: &StartOffsets,
        held: usize,
        observer: &Observer,
        is_store_down: bool,
    ) {
        let elapsed = self.measured.elapsed();
        if elapsed < INTERVAL {
            return;
        }
        let answered = observer.tally.answered.load(Ordering::Relaxed);
        let done = answered.saturating_sub(self.answered);
        (self.measured, self.answered) = (Instant::now(), answered);
        let unread = self.unread(consumer, starts).unwrap_or(0);
        let waiting = unread.saturating_add(held as u64);
        // An outage of the store says nothing about the rate, nor does a time in which the worker
        // keeps up: it is as fast then as messages come.
        if unread > 0 && !is_store_down {
            self.rate.note(done, elapsed);
        }
        observer.metrics.consumer_lag_messages.record(waiting, &[]);
        if let Some(seconds) = self.rate.seconds(waiting) {
            observer.metrics.consumer_lag_seconds.record(seconds, &[]);
        }
    }

    /// Messages of the consumer's partitions that it has not read, as far as is known.
    fn unread<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        starts: &StartOffsets,
    ) -> Option<u64> {
        let positions = consumer.position().ok()?;
        let name = CString::new(self.topic.as_str()).ok()?;
        let unread = |partition, position| {
            let (low, high) = watermarks(consumer, &name, partition)?;
            let next = match position {
                Offset::Offset(next) => next,
                // Nothing of it has been read.
                _ => match starts.of(partition)? {
                    Offset::Offset(start) => low.max(start),
                    Offset::End => high,
                    _ => low,
                },
            };
            u64::try_from(high - next).ok()
        };
        let elements = positions.elements();
        Some(elements.iter().filter_map(|one| unread(one.partition(), one.offset())).sum())
    }
}

impl ProcessingRate {
    fn note(&mut self, done: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let now = done as f64 / seconds;
        let Some(before) = self.now else {
            // Before, the first messages were under way; most of this second they still were.
            self.now = (done > 0).then_some(now);
            return;
        };
        self.noted += seconds;
        let fading = 1.0 - (-seconds / WINDOW.as_secs_f64()).exp();
        // A plain average, until there is as much as fades.
        let weight = fading.max(seconds / self.noted);
        self.now = Some(before + weight * (now - before));
    }

    /// How long so many messages take; None where none was ever done.
    fn seconds(&self, messages: u64) -> Option<f64> {
        match (messages, self.now) {
            (0, _) => Some(0.0),
            (_, None) => None,
            (messages, Some(rate)) => Some(messages as f64 / rate.max(MIN_RATE)),
        }
    }
}

/// The first and the next offset of a partition, as far as they are known.
fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &CStr,
    partition: i32,
) -> Option<(i64, i64)> {
    let (mut low, mut high) = (0, 0);
    // SAFETY: the client and the name outlive the call, which writes two numbers.
    let found = unsafe {
        bindings::rd_kafka_get_watermark_offsets(
            consumer.client().native_ptr(),
            topic.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    (found == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_messages_there_is_no_delay_and_without_a_rate_no_answer() {
        let mut rate = ProcessingRate::default();
        assert_eq!(rate.seconds(0), Some(0.0));
        assert_eq!(rate.seconds(7), None);
        rate.note(0, SECOND);
        assert_eq!(rate.seconds(7), None);
        rate.note(50, SECOND);
        assert_eq!(rate.seconds(100), Some(2.0));
    }

    /// Most of the second in which the first messages are answered went by without any.
    #[test]
    fn the_first_second_does_not_linger() {
        let mut rate = ProcessingRate::default();
        rate.note(4, SECOND);
        for done in [30, 50, 40, 40] {
            rate.note(done, SECOND);
        }
        assert_eq!(rate.seconds(400), Some(10.0));
    }

    #[test]
    fn a_change_of_rate_is_taken_in_within_minutes() {
        let mut rate = ProcessingRate::default();
        for _ in 0..10 * WINDOW.as_secs() {
            rate.note(100, SECOND);
        }
        for _ in 0..WINDOW.as_secs() {
            rate.note(20, SECOND);
        }
        let seconds = rate.seconds(100).unwrap();
        assert!((1.5..3.0).contains(&seconds), "{seconds}");
        for _ in 0..10 * WINDOW.as_secs() {
            rate.note(0, SECOND);
        }
        let seconds = rate.seconds(100).unwrap();
        assert!((10_000.0..=100.0 / MIN_RATE).contains(&seconds), "{seconds}");
    }
}
