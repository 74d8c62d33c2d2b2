//! Tells an outage of the object store from a bad object: a circuit breaker (Nygard, *Release
//! It!*, 2007) that opens for the store, never for one object.
//!
//! An object that fails transiently until its tries are used up proves nothing by itself; what
//! other objects were answered meanwhile does. If nearly all of those were read, and again while it
//! used up its tries once more, the store is well and the object is bad: it is dead-lettered. (Once
//! is not enough: trouble that has just begun looks the same.) Otherwise the breaker opens: partitions pause,
//! references are held, and only probes are sent, until several in a row are answered; then what
//! was held gets all its tries anew. Where there are no others, an object that fails again between
//! two clean series of probes is bad. One that is refused again and again by a store that is never
//! quite well is given up at last, so that it can't hold up its partition for ever.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Answers that are remembered.
const WINDOW: usize = 256;
/// Of which age at most.
const RECENT: Duration = Duration::from_secs(10);
/// So many recent answers must be there before failures alone open the breaker.
const ENOUGH: usize = 16;
/// Others' answers that it takes to vouch for the store.
const WITNESSES: usize = 4;
/// One failed answer in so many is what a store that is well may give.
const WELL: usize = 10;
/// Objects that were read and are remembered. One of them may have turned bad: more than the probes
/// in a row that show that the store is up.
const KNOWN: usize = 8;
/// After so many rounds of tries, each between probes that were answered, an object is given up.
const MAX_ROUNDS: u32 = 10;

/// What a try was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Object,
    /// That there is none, or none for us.
    NoObject,
    /// Nothing that would last.
    Nothing,
}

/// The record that an answer was for, told apart by any number.
pub type Asker = u64;

/// Shared by the fetchers, their prober and the consumer.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    /// What each change of `state` is told by.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<Answer>,
    /// Records that have used up their tries and are not settled: these say nothing of the store.
    suspects: HashSet<Asker>,
    /// Objects that were read, the last first: what it is like to read one, a probe can try on
    /// them.
    known: VecDeque<(String, String)>,
    /// The bucket to probe, while open.
    open: Option<String>,
    /// Whether the last series of probes succeeded without a failure before it.
    clean: bool,
}

/// What is to become of a record whose tries are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The object's own fault.
    Bad,
    /// Perhaps the store's: it gets all its tries anew.
    Again,
    /// Nobody waits for it any more.
    Stale,
}

/// How the store does, by what others were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    Unwell,
    Unknown,
}

/// How often one record has used up its tries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounds {
    used_up: u32,
    /// Rounds in a row in which the store was well.
    well: u32,
    /// Since the last clean series of probes.
    proven: bool,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    asker: Asker,
    at: Instant,
    /// It was about the object, even if it was "no such key".
    definite: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Breaker {
    /// Notes one answer of the store. Opens the breaker when nearly all recent ones failed.
    pub fn note(&self, asker: Asker, (bucket, key): (&str, &str), answer: Told) {
        let mut state = self.lock();
        let now = Instant::now();
        if answer == Told::Object {
            state.known.push_front((bucket.to_owned(), key.to_owned()));
            state.known.truncate(KNOWN);
        }
        let definite = answer != Told::Nothing;
        if state.open.is_some() {
            return;
        }
        state.answers.push_back(Answer { asker, at: now, definite });
        if state.answers.len() > WINDOW {
            state.answers.pop_front();
        }
        let (well, failed) = state.answered(now.checked_sub(RECENT), None);
        if well + failed >= ENOUGH && well * WELL <= well + failed {
            self.open(&mut state, bucket);
        }
    }

    /// Says what is to become of a record whose tries, begun at `began`, are used up; waits for
    /// probes where others don't tell.
    pub async fn judge(
        &self,
        (asker, bucket): (Asker, &str),
        began: Instant,
        rounds: &mut Rounds,
        wanted: impl Fn() -> bool,
    ) -> Verdict {
        rounds.used_up += 1;
        let condition = {
            let mut state = self.lock();
            state.suspects.insert(asker);
            let condition = state.condition(asker, began);
            if condition != Condition::Well && state.open.is_none() {
                self.open(&mut state, bucket);
            }
            condition
        };
        if condition != Condition::Well && !self.closed(wanted).await {
            return Verdict::Stale;
        }
        let state = self.lock();
        rounds.well = if condition == Condition::Well { rounds.well + 1 } else { 0 };
        let bad = match condition {
            Condition::Well => rounds.well > 1,
            Condition::Unknown => rounds.proven && state.clean,
            Condition::Unwell => false,
        };
        rounds.proven = condition == Condition::Unknown && state.clean;
        if bad || rounds.used_up >= MAX_ROUNDS { Verdict::Bad } else { Verdict::Again }
    }

    /// The record has its object, or its verdict.
    pub fn settled(&self, asker: Asker) {
        self.lock().suspects.remove(&asker);
    }

    /// An object that was read from `bucket`, another one for each of some numbers in a row; none
    /// for the places of a list that is not full.
    pub fn known(&self, bucket: &str, number: usize) -> Option<String> {
        let state = self.lock();
        let known = state.known.get(number % KNOWN).filter(|(of, _)| of == bucket);
        known.map(|(_, key)| key.clone())
    }

    pub fn is_open(&self) -> bool {
        self.lock().open.is_some()
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
            if let Some(bucket) = self.lock().open.clone() {
                return bucket;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// The probes were answered; `clean` says whether all of them were.
    pub fn close(&self, clean: bool) {
        let mut state = self.lock();
        state.open = None;
        state.clean = clean;
        self.changed.send_replace(());
    }

    fn open(&self, state: &mut State, bucket: &str) {
        state.open = Some(bucket.to_owned());
        // What was answered before says nothing about what comes after.
        state.answers.clear();
        self.changed.send_replace(());
    }

    /// No method panics while it holds the lock, so a poisoned one guards sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Answers since then, definite and failed, of all but the suspects and `asker`.
    fn answered(&self, since: Option<Instant>, asker: Option<Asker>) -> (usize, usize) {
        let counted = self.answers.iter().filter(|answer| {
            Some(answer.at) >= since
                && Some(answer.asker) != asker
                && !self.suspects.contains(&answer.asker)
        });
        let (mut well, mut failed) = (0, 0);
        for answer in counted {
            *(if answer.definite { &mut well } else { &mut failed }) += 1;
        }
        (well, failed)
    }

    fn condition(&self, asker: Asker, began: Instant) -> Condition {
        let (well, failed) = self.answered(Some(began), Some(asker));
        if failed * WELL > well + failed {
            Condition::Unwell
        } else if well >= WITNESSES {
            Condition::Well
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

    /// Of a round that began before anything of the test.
    async fn judge(breaker: &Breaker, clean: bool, rounds: &mut Rounds) -> Verdict {
        let began = Instant::now().checked_sub(RECENT).unwrap();
        tokio::select! {
            verdict = breaker.judge((9, "photos"), began, rounds, || true) => verdict,
            () = probe(breaker, clean) => unreachable!(),
        }
    }

    #[test]
    fn nearly_all_must_fail_before_it_opens_by_itself() {
        let breaker = Breaker::default();
        for asker in 0..40 {
            breaker.note(asker, OBJECT, if asker % 4 == 0 { Told::Object } else { Told::Nothing });
            assert!(!breaker.is_open(), "a quarter is answered");
        }
        let breaker = Breaker::default();
        for asker in 0..ENOUGH as u64 {
            assert!(!breaker.is_open(), "{asker} answers are not enough");
            breaker.note(asker, OBJECT, Told::Nothing);
        }
        assert!(breaker.is_open());
        breaker.close(true);
        assert!(!breaker.is_open());
    }

    #[tokio::test]
    async fn an_object_is_bad_where_others_are_read() {
        let breaker = Breaker::default();
        for asker in 0..WITNESSES as u64 {
            breaker.note(asker, OBJECT, Told::Object);
        }
        for _ in 0..5 {
            breaker.note(9, OBJECT, Told::Nothing);
        }
        let mut rounds = Rounds::default();
        assert_eq!(judge(&breaker, true, &mut rounds).await, Verdict::Again, "once is not enough");
        assert_eq!(judge(&breaker, true, &mut rounds).await, Verdict::Bad);
        let began = Instant::now() + RECENT;
        let told = breaker.lock().condition(9, began);
        assert_eq!(told, Condition::Unknown, "what was before says nothing");
        assert!(!breaker.is_open(), "nobody had to be asked");
    }

    #[tokio::test]
    async fn no_object_is_bad_where_others_fail_too() {
        let breaker = Breaker::default();
        for asker in 0..8 {
            breaker.note(asker, OBJECT, Told::Object);
            breaker.note(20 + asker, OBJECT, Told::Nothing);
        }
        let mut rounds = Rounds::default();
        assert_eq!(judge(&breaker, true, &mut rounds).await, Verdict::Again);
        for _ in 2..MAX_ROUNDS {
            for asker in 0..8 {
                breaker.note(asker, OBJECT, Told::Object);
                breaker.note(20 + asker, OBJECT, Told::Nothing);
            }
            assert_eq!(judge(&breaker, true, &mut rounds).await, Verdict::Again);
        }
        breaker.note(20, OBJECT, Told::Nothing);
        assert_eq!(judge(&breaker, true, &mut rounds).await, Verdict::Bad, "but not for ever");
    }

    #[tokio::test]
    async fn a_lone_object_is_bad_between_two_clean_series_of_probes() {
        let breaker = Breaker::default();
        let mut rounds = Rounds::default();
        for (clean, verdict) in [
            (true, Verdict::Again),
            (false, Verdict::Again),
            (true, Verdict::Again),
            (true, Verdict::Bad),
        ] {
            breaker.note(9, OBJECT, Told::Nothing);
            assert_eq!(judge(&breaker, clean, &mut rounds).await, verdict);
        }
    }

    #[tokio::test]
    async fn objects_that_are_known_to_fail_say_nothing_of_the_store() {
        let breaker = Breaker::default();
        for asker in 0..4 {
            for _ in 0..3 {
                breaker.note(100 + asker, OBJECT, Told::Nothing);
            }
            breaker.lock().suspects.insert(100 + asker);
        }
        for asker in 0..8 {
            breaker.note(asker, OBJECT, Told::NoObject);
        }
        let mut rounds = Rounds { well: 1, ..Rounds::default() };
        assert_eq!(judge(&breaker, true, &mut rounds).await, Verdict::Bad);
    }

    #[tokio::test]
    async fn what_has_become_stale_is_not_held() {
        let breaker = Breaker::default();
        let mut rounds = Rounds::default();
        let verdict = breaker.judge((9, "photos"), Instant::now(), &mut rounds, || false).await;
        assert_eq!(verdict, Verdict::Stale);
        assert!(!breaker.closed(|| false).await);
    }

    #[test]
    fn probes_read_what_was_read() {
        let breaker = Breaker::default();
        assert_eq!(breaker.known("photos", 0), None);
        breaker.note(1, OBJECT, Told::Object);
        breaker.note(2, ("photos", "missing.jpg"), Told::NoObject);
        assert_eq!(breaker.known("photos", 0).as_deref(), Some("a.jpg"));
        assert_eq!(breaker.known("others", 0), None);
        assert_eq!(breaker.known("photos", 1), None);
        for number in 0..2 * KNOWN {
            breaker.note(3, ("photos", &format!("{number}.jpg")), Told::Object);
        }
        let found: HashSet<_> =
            (0..3 * KNOWN).filter_map(|number| breaker.known("photos", number)).collect();
        assert_eq!(found.len(), KNOWN);
        assert!(!found.contains("a.jpg"));
    }
}
