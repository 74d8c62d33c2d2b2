//! Tells an outage of the object store from a bad object: a circuit breaker (Nygard, *Release
//! It!*, 2007) that opens for the store, never for one object.
//!
//! An object that fails transiently until its tries are used up proves nothing by itself; the
//! responses to other reads in that time do. If nearly all of those succeed, twice over, the store is
//! healthy and the object is bad: its reference is dead-lettered. (Once is not enough: an outage that
//! has just begun looks the same.) Otherwise the breaker opens: partitions pause, references wait, and
//! only probes are sent until several in a row are answered; then each read that waits gets all its
//! tries anew. Where there are no other reads, an object that fails again between two clean series of
//! probes is bad. An object that fails through many cycles while the store is never quite healthy
//! is given up at last, so that it can't hold up its partition for ever.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Responses that are remembered.
const WINDOW: usize = 256;
/// Their maximum age.
const RECENT: Duration = Duration::from_secs(10);
/// Minimum number of recent responses before failures alone open the breaker.
const ENOUGH: usize = 16;
/// Minimum number of responses to other reads that show that the store is healthy.
const WITNESSES: usize = 4;
/// A healthy store fails at most one request in this many.
const HEALTHY: usize = 10;
/// Objects that were read and are remembered for probes: more than the probes in a row that close the
/// breaker, since one of them may have turned bad.
const KNOWN: usize = 8;
/// Retry cycles after which an object is given up.
const MAX_CYCLES: u32 = 10;

/// The store's response to one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    Object,
    /// There is no such object, or no access to it.
    NoObject,
    /// A transient failure.
    Unavailable,
}

/// Tells the reads of references apart.
pub type RequestId = u64;

/// Shared by the fetchers, their prober and the consumer.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    /// Signals each change of `state`.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    responses: VecDeque<RecordedResponse>,
    /// Reads that have used up their tries and are not resolved: they say nothing about the store.
    suspects: HashSet<RequestId>,
    /// Objects that were read, the last first: probes read them again.
    known: VecDeque<(String, String)>,
    /// The bucket to probe, while open.
    open: Option<String>,
    /// Whether the last series of probes succeeded without a failure before it.
    clean: bool,
}

/// The decision about a read whose tries are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The object's own fault.
    Bad,
    /// The store may be at fault: the read gets all its tries anew.
    Again,
    /// Nobody waits for it any more.
    Stale,
}

/// The state of the store, judged by the responses to other reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Healthy,
    Unhealthy,
    Unknown,
}

/// A read whose tries are used up.
#[derive(Clone, Copy, Debug)]
pub struct ExhaustedRead<'a> {
    pub id: RequestId,
    pub bucket: &'a str,
    /// When the first of these tries began.
    pub began: Instant,
}

/// How often one read has used up its tries.
#[derive(Clone, Copy, Debug, Default)]
pub struct RetryCycles {
    used_up: u32,
    /// Consecutive retry cycles in which the store was healthy.
    healthy: u32,
    /// Since the last clean series of probes.
    proven: bool,
}

#[derive(Clone, Copy, Debug)]
struct RecordedResponse {
    id: RequestId,
    at: Instant,
    /// It was about the object, as "no such key" is.
    definite: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Breaker {
    /// Records one response of the store. Opens the breaker when nearly all recent ones failed.
    pub fn record(&self, id: RequestId, (bucket, key): (&str, &str), response: Response) {
        let mut state = self.state.lock();
        let now = Instant::now();
        if response == Response::Object {
            state.known.push_front((bucket.to_owned(), key.to_owned()));
            state.known.truncate(KNOWN);
        }
        let definite = response != Response::Unavailable;
        if state.open.is_some() {
            return;
        }
        state.responses.push_back(RecordedResponse { id, at: now, definite });
        if state.responses.len() > WINDOW {
            state.responses.pop_front();
        }
        let (definite, failed) = state.count_responses(now.checked_sub(RECENT), None);
        if definite + failed >= ENOUGH && definite * HEALTHY <= definite + failed {
            self.open(&mut state, bucket);
        }
    }

    /// Decides about a read whose tries are used up. Waits for probes where the responses to other
    /// reads do not tell whether the store is at fault.
    pub async fn judge(
        &self,
        ExhaustedRead { id, bucket, began }: ExhaustedRead<'_>,
        cycles: &mut RetryCycles,
        wanted: impl Fn() -> bool,
    ) -> Verdict {
        cycles.used_up += 1;
        let condition = {
            let mut state = self.state.lock();
            state.suspects.insert(id);
            let condition = state.condition(id, began);
            if condition != Condition::Healthy && state.open.is_none() {
                self.open(&mut state, bucket);
            }
            condition
        };
        if condition != Condition::Healthy && !self.closed(wanted).await {
            return Verdict::Stale;
        }
        let state = self.state.lock();
        cycles.healthy = if condition == Condition::Healthy { cycles.healthy + 1 } else { 0 };
        let bad = match condition {
            Condition::Healthy => cycles.healthy > 1,
            Condition::Unknown => cycles.proven && state.clean,
            Condition::Unhealthy => false,
        };
        cycles.proven = condition == Condition::Unknown && state.clean;
        if bad || cycles.used_up >= MAX_CYCLES { Verdict::Bad } else { Verdict::Again }
    }

    /// The read has its object, or its verdict.
    pub fn resolved(&self, id: RequestId) {
        self.state.lock().suspects.remove(&id);
    }

    /// An object that was read from `bucket`, another one for each of some numbers in a row; none
    /// for the places of a list that is not full.
    pub fn known_object(&self, bucket: &str, number: usize) -> Option<String> {
        let state = self.state.lock();
        let known = state.known.get(number % KNOWN).filter(|(of, _)| of == bucket);
        known.map(|(_, key)| key.clone())
    }

    pub fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }

    /// Waits while the breaker is open; `false` when `wanted` says no meanwhile.
    pub async fn closed(&self, wanted: impl Fn() -> bool) -> bool {
        let mut changes = self.changed.subscribe();
        while self.is_open() {
            if !wanted() {
                return false;
            }
            // Asked again from time to time: nothing tells that work has become stale.
            let _ = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await;
        }
        wanted()
    }

    /// Waits until there is a bucket to probe.
    pub async fn opened(&self) -> String {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(bucket) = self.state.lock().open.clone() {
                return bucket;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// The probes were answered; `clean` says whether all of them were.
    pub fn close(&self, clean: bool) {
        let mut state = self.state.lock();
        state.open = None;
        state.clean = clean;
        self.changed.send_replace(());
    }

    fn open(&self, state: &mut State, bucket: &str) {
        state.open = Some(bucket.to_owned());
        // Earlier responses do not count from here on.
        state.responses.clear();
        self.changed.send_replace(());
    }
}

impl State {
    /// Counts the responses since then, definite and failed, of all but the suspects and `id`.
    fn count_responses(&self, since: Option<Instant>, id: Option<RequestId>) -> (usize, usize) {
        let counted = self.responses.iter().filter(|response| {
            Some(response.at) >= since
                && Some(response.id) != id
                && !self.suspects.contains(&response.id)
        });
        let (mut definite, mut failed) = (0, 0);
        for response in counted {
            *(if response.definite { &mut definite } else { &mut failed }) += 1;
        }
        (definite, failed)
    }

    fn condition(&self, id: RequestId, began: Instant) -> Condition {
        let (definite, failed) = self.count_responses(Some(began), Some(id));
        if failed * HEALTHY > definite + failed {
            Condition::Unhealthy
        } else if definite >= WITNESSES {
            Condition::Healthy
        } else {
            Condition::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: (&str, &str) = ("photos", "a.jpg");

    /// Answers the probes of every opening until it is dropped.
    async fn probe(breaker: &Breaker, clean: bool) {
        loop {
            assert_eq!(breaker.opened().await, "photos");
            breaker.close(clean);
            tokio::task::yield_now().await;
        }
    }

    /// Judges a cycle that began before the test's responses.
    async fn judge(breaker: &Breaker, clean: bool, cycles: &mut RetryCycles) -> Verdict {
        let began = Instant::now().checked_sub(RECENT).unwrap();
        let read = ExhaustedRead { id: 9, bucket: "photos", began };
        tokio::select! {
            verdict = breaker.judge(read, cycles, || true) => verdict,
            () = probe(breaker, clean) => unreachable!(),
        }
    }

    #[test]
    fn nearly_all_must_fail_before_it_opens_by_itself() {
        let breaker = Breaker::default();
        for id in 0..40 {
            breaker.record(
                id,
                OBJECT,
                if id % 4 == 0 { Response::Object } else { Response::Unavailable },
            );
            assert!(!breaker.is_open(), "a quarter is answered");
        }
        let breaker = Breaker::default();
        for id in 0..ENOUGH as u64 {
            assert!(!breaker.is_open(), "{id} responses are not enough");
            breaker.record(id, OBJECT, Response::Unavailable);
        }
        assert!(breaker.is_open());
        breaker.close(true);
        assert!(!breaker.is_open());
    }

    #[tokio::test]
    async fn an_object_is_bad_where_others_are_read() {
        let breaker = Breaker::default();
        for id in 0..WITNESSES as u64 {
            breaker.record(id, OBJECT, Response::Object);
        }
        for _ in 0..5 {
            breaker.record(9, OBJECT, Response::Unavailable);
        }
        let mut cycles = RetryCycles::default();
        assert_eq!(judge(&breaker, true, &mut cycles).await, Verdict::Again, "once is not enough");
        assert_eq!(judge(&breaker, true, &mut cycles).await, Verdict::Bad);
        let began = Instant::now() + RECENT;
        let told = breaker.state.lock().condition(9, began);
        assert_eq!(told, Condition::Unknown, "what was before says nothing");
        assert!(!breaker.is_open(), "nobody had to be asked");
    }

    #[tokio::test]
    async fn no_object_is_bad_where_others_fail_too() {
        let breaker = Breaker::default();
        for id in 0..8 {
            breaker.record(id, OBJECT, Response::Object);
            breaker.record(20 + id, OBJECT, Response::Unavailable);
        }
        let mut cycles = RetryCycles::default();
        assert_eq!(judge(&breaker, true, &mut cycles).await, Verdict::Again);
        for _ in 2..MAX_CYCLES {
            for id in 0..8 {
                breaker.record(id, OBJECT, Response::Object);
                breaker.record(20 + id, OBJECT, Response::Unavailable);
            }
            assert_eq!(judge(&breaker, true, &mut cycles).await, Verdict::Again);
        }
        breaker.record(20, OBJECT, Response::Unavailable);
        assert_eq!(judge(&breaker, true, &mut cycles).await, Verdict::Bad, "but not for ever");
    }

    #[tokio::test]
    async fn a_lone_object_is_bad_between_two_clean_series_of_probes() {
        let breaker = Breaker::default();
        let mut cycles = RetryCycles::default();
        for (clean, verdict) in [
            (true, Verdict::Again),
            (false, Verdict::Again),
            (true, Verdict::Again),
            (true, Verdict::Bad),
        ] {
            breaker.record(9, OBJECT, Response::Unavailable);
            assert_eq!(judge(&breaker, clean, &mut cycles).await, verdict);
        }
    }

    #[tokio::test]
    async fn objects_that_are_known_to_fail_say_nothing_of_the_store() {
        let breaker = Breaker::default();
        for id in 0..4 {
            for _ in 0..3 {
                breaker.record(100 + id, OBJECT, Response::Unavailable);
            }
            breaker.state.lock().suspects.insert(100 + id);
        }
        for id in 0..8 {
            breaker.record(id, OBJECT, Response::NoObject);
        }
        let mut cycles = RetryCycles { healthy: 1, ..RetryCycles::default() };
        assert_eq!(judge(&breaker, true, &mut cycles).await, Verdict::Bad);
    }

    #[tokio::test]
    async fn what_has_become_stale_is_not_held() {
        let breaker = Breaker::default();
        let mut cycles = RetryCycles::default();
        let verdict = breaker
            .judge(
                ExhaustedRead { id: 9, bucket: "photos", began: Instant::now() },
                &mut cycles,
                || false,
            )
            .await;
        assert_eq!(verdict, Verdict::Stale);
        assert!(!breaker.closed(|| false).await);
    }

    #[test]
    fn probes_read_what_was_read() {
        let breaker = Breaker::default();
        assert_eq!(breaker.known_object("photos", 0), None);
        breaker.record(1, OBJECT, Response::Object);
        breaker.record(2, ("photos", "missing.jpg"), Response::NoObject);
        assert_eq!(breaker.known_object("photos", 0).as_deref(), Some("a.jpg"));
        assert_eq!(breaker.known_object("others", 0), None);
        assert_eq!(breaker.known_object("photos", 1), None);
        for number in 0..2 * KNOWN {
            breaker.record(3, ("photos", &format!("{number}.jpg")), Response::Object);
        }
        let found: HashSet<_> =
            (0..3 * KNOWN).filter_map(|number| breaker.known_object("photos", number)).collect();
        assert_eq!(found.len(), KNOWN);
        assert!(!found.contains("a.jpg"));
    }
}
