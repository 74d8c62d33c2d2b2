//! One reference works for others to the same object: what it leads goes with it through the
//! stages, and its outcome becomes theirs (`repeats` keeps who waits for whom).
//!
//! A stage that lets go of a reference without an outcome, because it is stale, drops its [`Lead`]
//! and so hands the work to the next one that waits: no reference is lost with another's
//! partition. Each keeps its own origin, so the checks at commit are those of any outcome.

mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use tokio::sync::mpsc;

use crate::config;
use crate::engine::Caption;
use crate::message::{Identity, ImageRequest, Stage};
use crate::worker::coalesce::table::{Key, Place, Repeats};
use crate::worker::context::Shared;
use crate::worker::item::Referenced;
use crate::worker::models::Models;
use crate::worker::outcome::{Captioned, Failed, ObjectState, Origin, Outcome};

/// Answers that are kept at most: a few kB each where records carry embeddings.
const KEPT: usize = 4_096;

/// Who leads, who waits, and what was answered lately.
#[derive(Debug)]
pub struct Leads {
    shared: Arc<Shared>,
    models: Arc<Models>,
    /// None where `limits.repeat_window_ms` is 0.
    repeats: Option<Mutex<Table>>,
    again: mpsc::UnboundedSender<Referenced>,
    taken_over: Mutex<Option<mpsc::UnboundedReceiver<Referenced>>>,
    /// Whether records carry the embedding.
    embeddings: bool,
}

type Table = Repeats<(Origin, ImageRequest), Arc<Answer>>;

/// An outcome in nobody's name, and the span of who led to it.
#[derive(Clone, Debug)]
struct Answer {
    outcome: Nameless,
    led_by: Option<SpanContext>,
}

#[derive(Clone, Debug)]
enum Nameless {
    Captioned {
        object: ObjectState,
        content_type: &'static str,
        width: u32,
        height: u32,
        caption: Caption,
        model: Arc<Identity>,
    },
    Failed {
        stage: Stage,
        error: crate::error::Error,
        attempts: u32,
    },
}

/// What becomes of a reference.
pub enum Joined {
    Leads(Referenced),
    Waits,
    Answered(Outcome),
}

/// The references that wait for one's outcome; none by default.
#[derive(Debug, Default)]
pub struct Lead(Option<(Arc<Leads>, u64)>);

impl Leads {
    pub fn new(settings: &config::Config, shared: Arc<Shared>, models: Arc<Models>) -> Arc<Self> {
        let window = Duration::from_millis(settings.limits.repeat_window_ms);
        let repeats = (!window.is_zero()).then(|| Mutex::new(Repeats::new(window, KEPT)));
        let (again, taken_over) = mpsc::unbounded_channel();
        let embeddings = settings.model.embeddings;
        Arc::new(Self {
            shared,
            models,
            repeats,
            again,
            taken_over: Mutex::new(Some(taken_over)),
            embeddings,
        })
    }

    /// Where references come out that lead now because their leader fell away. To be asked for
    /// once; it never ends before `self`.
    pub fn taken_over(&self) -> mpsc::UnboundedReceiver<Referenced> {
        let mut place = self.taken_over.lock().unwrap_or_else(PoisonError::into_inner);
        place.take().unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    pub fn join(self: &Arc<Self>, record: Referenced) -> Joined {
        let Some(mut table) = self.table() else {
            return Joined::Leads(record);
        };
        let Referenced { origin, request, lead: _ } = record;
        let key = Key {
            bucket: request.bucket.clone(),
            key: request.key.clone(),
            version_id: request.version_id.clone(),
            etag: request.etag.clone(),
            model: self.models.turns(),
        };
        let counts = |(origin, _): &(Origin, ImageRequest)| self.shared.is_current(origin);
        match table.join(key, (origin, request), Instant::now(), counts) {
            Place::Leads((origin, request), number) => {
                let lead = Lead(Some((Arc::clone(self), number)));
                Joined::Leads(Referenced { origin, request, lead })
            }
            Place::Waits => Joined::Waits,
            Place::Answered((origin, request), answer) => {
                drop(table);
                self.shared.metrics.repeats.add(1, &[]);
                Joined::Answered(answer.to(origin, request))
            }
        }
    }

    fn table(&self) -> Option<MutexGuard<'_, Table>> {
        let repeats = self.repeats.as_ref()?;
        Some(repeats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn hand_on(self: Arc<Self>, number: u64) {
        let counts = |(origin, _): &(Origin, ImageRequest)| self.shared.is_current(origin);
        let next = self.table().and_then(|mut table| table.give_up(number, counts));
        let Some((origin, request)) = next else {
            return;
        };
        let lead = Lead(Some((Arc::clone(&self), number)));
        // The fetchers end before the others only when the run is over.
        if let Err(mpsc::error::SendError(mut record)) =
            self.again.send(Referenced { origin, request, lead })
        {
            record.lead.0 = None;
        }
    }
}

impl Lead {
    /// The object is read from now on.
    pub fn reads(&self, now: Instant) {
        if let Some((leads, number)) = &self.0
            && let Some(mut table) = leads.table()
        {
            table.reads(*number, now);
        }
    }

    /// The outcome, and the same for each that waited, in its own name.
    pub fn answer(mut self, outcome: Outcome) -> Vec<Outcome> {
        let Some((leads, number)) = self.0.take() else {
            return vec![outcome];
        };
        let answer = Arc::new(Answer::of(&outcome, leads.embeddings));
        let kept = answer.is_caption().then(|| Arc::clone(&answer));
        let waited = leads
            .table()
            .map(|mut table| table.answer(number, kept, Instant::now()))
            .unwrap_or_default();
        leads.shared.metrics.repeats.add(waited.len() as u64, &[]);
        let others = waited.into_iter().map(|(origin, request)| answer.to(origin, request));
        std::iter::once(outcome).chain(others).collect()
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if let Some((leads, number)) = self.0.take() {
            leads.hand_on(number);
        }
    }
}

impl Answer {
    fn of(outcome: &Outcome, embeddings: bool) -> Self {
        let led_by = outcome.origin().trace.context().cloned();
        let outcome = match outcome {
            Outcome::Captioned(captioned) => {
                let Captioned { object, content_type, width, height, caption, model, .. } =
                    &**captioned;
                let embedding = if embeddings { caption.embedding.clone() } else { Vec::new() };
                Nameless::Captioned {
                    object: object.clone(),
                    content_type,
                    width: *width,
                    height: *height,
                    caption: Caption {
                        text: caption.text.clone(),
                        score: caption.score,
                        embedding,
                        attention: Vec::new(),
                    },
                    model: Arc::clone(model),
                }
            }
            Outcome::Failed(failed) => {
                let Failed { stage, error, attempts, .. } = &**failed;
                Nameless::Failed { stage: *stage, error: error.clone(), attempts: *attempts }
            }
        };
        Self { outcome, led_by }
    }

    fn is_caption(&self) -> bool {
        matches!(self.outcome, Nameless::Captioned { .. })
    }

    fn to(&self, origin: Origin, request: ImageRequest) -> Outcome {
        origin.trace.repeats(self.led_by.as_ref());
        match self.outcome.clone() {
            Nameless::Captioned { object, content_type, width, height, caption, model } => {
                Outcome::Captioned(Box::new(Captioned {
                    origin,
                    request,
                    object,
                    content_type,
                    width,
                    height,
                    caption,
                    model,
                }))
            }
            Nameless::Failed { stage, error, attempts } => {
                Outcome::failed(origin, Some(request), stage, error, attempts)
            }
        }
    }
}
