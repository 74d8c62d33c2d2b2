//! Request coalescing (as Go's `singleflight`): if several references name one object, the first
//! leads and is processed. The others follow and get its result (`table` keeps who follows whom).
//!
//! A stage that drops a stale item drops its [`Leader`] with it, which promotes the next follower:
//! no reference is lost with another's partition. Each keeps its own origin, so the checks at
//! commit are those of any reference.

mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::config;
use crate::telemetry::Metrics;
use crate::worker::coalesce::table::{Joined, Key, Table};
use crate::worker::models::Models;
use crate::worker::outcome::{CaptionResult, Outcome, Reference};
use crate::worker::ownership::Ownership;

/// Most results that are kept.
const MAX_KEPT: usize = 4_096;

/// Who leads, who follows, and the recent results.
#[derive(Debug)]
pub struct Coalescer {
    ownership: Arc<Ownership>,
    models: Arc<Models>,
    metrics: Arc<Metrics>,
    /// None where `limits.coalesce_window_ms` is 0.
    table: Option<Mutex<Table<Reference, Kept>>>,
    promoted: mpsc::UnboundedSender<Leading>,
}

/// A result, and the span of the reference that led to it.
#[derive(Clone, Debug)]
struct Kept {
    result: CaptionResult,
    leader: Option<SpanContext>,
}

/// A reference that is processed.
#[derive(Debug)]
pub struct Leading {
    pub reference: Reference,
    pub leader: Leader,
}

/// The role of a reference in its group.
#[derive(Debug)]
pub enum Role {
    Leads(Leading),
    Follows,
    Answered(Outcome),
}

/// The followers of a reference; none by default.
#[derive(Debug, Default)]
pub struct Leader(Option<Group>);

#[derive(Debug)]
struct Group {
    coalescer: Arc<Coalescer>,
    number: u64,
}

impl Coalescer {
    /// The coalescer, and where followers come out that lead because their leader was dropped. That
    /// channel does not end before the coalescer.
    pub fn new(
        settings: &config::Limits,
        ownership: Arc<Ownership>,
        models: Arc<Models>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Leading>) {
        let window = Duration::from_millis(settings.coalesce_window_ms);
        let table = (!window.is_zero()).then(|| Mutex::new(Table::new(window, MAX_KEPT)));
        let (promoted, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { ownership, models, metrics, table, promoted }), receiver)
    }

    pub fn join(self: &Arc<Self>, reference: Reference) -> Role {
        let Some(table) = &self.table else {
            return Role::Leads(Leading { reference, leader: Leader::default() });
        };
        let request = &reference.request;
        let key = Key {
            bucket: request.bucket.clone(),
            key: request.key.clone(),
            version_id: request.version_id.clone(),
            etag: request.etag.clone(),
            model: self.models.generation(),
        };
        let is_current = |other: &Reference| self.is_current(other);
        let joined = table.lock().join(key, reference, Instant::now(), is_current);
        match joined {
            Joined::Leads(reference, number) => {
                Role::Leads(Leading { reference, leader: self.leader(number) })
            }
            Joined::Follows => Role::Follows,
            Joined::Answered(reference, kept) => {
                self.metrics.coalesced_references.add(1, &[]);
                Role::Answered(kept.give(reference))
            }
        }
    }

    fn leader(self: &Arc<Self>, number: u64) -> Leader {
        Leader(Some(Group { coalescer: Arc::clone(self), number }))
    }

    fn is_current(&self, reference: &Reference) -> bool {
        reference.origin.is_current(&self.ownership)
    }

    /// Makes the next follower of a group its leader.
    fn promote(self: &Arc<Self>, number: u64) {
        let Some(table) = &self.table else {
            return;
        };
        let next = table.lock().promote_follower(number, |other| self.is_current(other));
        let Some(reference) = next else {
            return;
        };
        let leading = Leading { reference, leader: self.leader(number) };
        // The fetchers end before the other stages only when the run is over.
        if let Err(mpsc::error::SendError(mut unsent)) = self.promoted.send(leading) {
            unsent.leader.0 = None;
        }
    }
}

impl Leader {
    /// The object is read from now on.
    pub fn reads(&self, now: Instant) {
        if let Some(Group { coalescer, number }) = &self.0
            && let Some(table) = &coalescer.table
        {
            table.lock().reads(*number, now);
        }
    }

    /// The outcomes of the followers: each gets `result`. `span` is the leader's.
    pub fn answer(mut self, result: &CaptionResult, span: Option<&SpanContext>) -> Vec<Outcome> {
        let Some(Group { coalescer, number }) = self.0.take() else {
            return Vec::new();
        };
        let Some(table) = &coalescer.table else {
            return Vec::new();
        };
        let kept = Kept { result: result.clone(), leader: span.cloned() };
        // Failures are not kept for later references.
        let to_keep = result.is_ok().then(|| kept.clone());
        let followers = table.lock().answer(number, to_keep, Instant::now());
        coalescer.metrics.coalesced_references.add(followers.len() as u64, &[]);
        followers.into_iter().map(|reference| kept.give(reference)).collect()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(Group { coalescer, number }) = self.0.take() {
            coalescer.promote(number);
        }
    }
}

impl Kept {
    fn give(&self, reference: Reference) -> Outcome {
        reference.origin.trace.coalesced(self.leader.as_ref());
        reference.with_result(self.result.clone())
    }
}
