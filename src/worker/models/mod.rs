//! The model in use, and the one that takes its place.
//!
//! Images meet a model when they are decoded, for its size, and carry it from there: a batch is of
//! one model, and each stage behind changes its half of the engine when the first batch of another
//! comes. Before `decode` turns to the next model all that it has begun is through, so that no
//! image of an older one comes after one of a newer.

pub mod reload;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::config::DecodeMode;
use crate::engine::{Encoder, Engine, Pixels, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;
use crate::message::Identity;
use crate::telemetry::Metrics;
use opentelemetry::KeyValue;

/// Inputs that go round: one is filled, one is full and waits, one is encoded.
const INPUTS: usize = 3;

/// A loaded bundle, for all stages.
pub struct Model {
    /// Names it in records, which outlive everything else of it.
    pub identity: Arc<Identity>,
    pub preprocessor: Preprocessor,
    /// Until the stages that run them fetch them.
    encoder: Mutex<Option<Encoder>>,
    writer: Mutex<Option<Writer>>,
    /// Room for batches that is free.
    inputs: tokio::sync::Mutex<mpsc::Receiver<Pixels>>,
    give_back: mpsc::Sender<Pixels>,
}

impl Model {
    /// # Errors
    /// As [`Engine::pixels`].
    pub fn new(engine: Engine, mode: DecodeMode) -> Result<Self> {
        let (give_back, inputs) = mpsc::channel(INPUTS);
        for _ in 0..INPUTS {
            // There is room for all of them.
            let _ = give_back.try_send(engine.pixels()?);
        }
        let identity = Arc::new(engine.bundle().identity());
        let preprocessor = engine.preprocessor().clone().in_mode(mode);
        let (encoder, writer) = engine.split();
        Ok(Self {
            identity,
            preprocessor,
            encoder: Mutex::new(Some(encoder)),
            writer: Mutex::new(Some(writer)),
            inputs: tokio::sync::Mutex::new(inputs),
            give_back,
        })
    }

    /// Room for a batch, as soon as there is some.
    pub async fn input(&self) -> Result<Pixels> {
        let free = self.inputs.lock().await.recv().await;
        free.ok_or_else(|| Error::new(ErrorKind::Internal, "the inputs of batches are gone"))
    }

    /// The batch in `pixels` is encoded.
    pub fn give_back(&self, pixels: Pixels) {
        let _ = self.give_back.try_send(pixels);
    }

    pub fn take_encoder(&self) -> Option<Encoder> {
        lock(&self.encoder).take()
    }

    pub fn take_writer(&self) -> Option<Writer> {
        lock(&self.writer).take()
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Model").field(&self.identity.digest).finish()
    }
}

/// The model that images are decoded for, and one that waits for its turn.
#[derive(Debug)]
pub struct Models {
    serving: Mutex<Arc<Model>>,
    next: Mutex<Option<Arc<Model>>>,
    offered: Notify,
    turns: AtomicU64,
}

impl Models {
    pub fn new(model: Model) -> Self {
        Self {
            serving: Mutex::new(Arc::new(model)),
            next: Mutex::default(),
            offered: Notify::new(),
            turns: AtomicU64::new(0),
        }
    }

    pub fn serving(&self) -> Arc<Model> {
        Arc::clone(&lock(&self.serving))
    }

    /// How often another model has come into use.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// To be used next, instead of one that was offered before and is not yet.
    pub fn offer(&self, model: Model) {
        *lock(&self.next) = Some(Arc::new(model));
        self.offered.notify_one();
    }

    /// Comes back when a model was offered.
    pub async fn offered(&self) {
        self.offered.notified().await;
    }

    /// Turns to the model that was offered, if there is one: the new one.
    pub fn turn(&self) -> Option<Arc<Model>> {
        let next = lock(&self.next).take()?;
        *lock(&self.serving) = Arc::clone(&next);
        self.turns.fetch_add(1, Ordering::Relaxed);
        Some(next)
    }
}

/// A stage's half of the engine of the model in use.
pub struct Half<H> {
    /// Whose it is, and the half.
    held: Option<(Arc<Identity>, H)>,
    take: fn(&Model) -> Option<H>,
}

impl<H> Half<H> {
    pub fn new(take: fn(&Model) -> Option<H>) -> Self {
        Self { held: None, take }
    }

    /// The half of `model`; that of another one is dropped first.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for a model that was in use before.
    pub fn of(&mut self, model: &Model) -> Result<&mut H> {
        self.held.take_if(|(owner, _)| !Arc::ptr_eq(owner, &model.identity));
        if self.held.is_none() {
            self.held = (self.take)(model).map(|half| (Arc::clone(&model.identity), half));
        }
        match &mut self.held {
            Some((_, half)) => Ok(half),
            None => Err(Error::new(ErrorKind::Internal, "a batch came for a model that is gone")
                .with("model", &model.identity.digest)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells which model is in use, instead of the one before.
pub fn tell(metrics: &Metrics, model: &Identity, before: Option<&Identity>) {
    let labels = |model: &Identity| {
        [
            KeyValue::new("digest", model.digest.clone()),
            KeyValue::new("name", model.name.clone()),
            KeyValue::new("version", model.version.clone()),
        ]
    };
    if let Some(before) = before {
        metrics.model_info.record(0, &labels(before));
    }
    metrics.model_info.record(1, &labels(model));
    tracing::info!(
        model = model.digest,
        name = model.name,
        version = model.version,
        "model in use"
    );
}
