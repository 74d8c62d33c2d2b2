//! The serving model, and the next one.
//!
//! An image is decoded for a model, at its size, and carries it from there: a batch is of one model,
//! and each stage behind changes its half of the engine when the first batch of another model comes.
//! Before the decoder swaps to the next model it finishes what it has begun, so that no image of an
//! older model comes after one of a newer.

pub mod reload;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::config::DecodeMode;
use crate::engine::{CaptionDecoder, Encoder, Engine, Pixels};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;
use crate::message::Identity;
use crate::telemetry::Metrics;
use opentelemetry::KeyValue;

/// Pixel buffers that go round: one is filled, one is full and waits, one is encoded.
const BUFFERS: usize = 3;

/// A loaded bundle, for all stages.
pub struct Model {
    /// Shared with records, which outlive the model.
    pub identity: Arc<Identity>,
    pub preprocessor: Preprocessor,
    /// Until the stages that run them take them.
    encoder: Mutex<Option<Encoder>>,
    decoder: Mutex<Option<CaptionDecoder>>,
    /// Free pixel buffers.
    buffers: tokio::sync::Mutex<mpsc::Receiver<Pixels>>,
    give_back: mpsc::Sender<Pixels>,
}

impl Model {
    /// # Errors
    /// As [`Engine::allocate_pixels`].
    pub fn new(engine: Engine, mode: DecodeMode) -> Result<Self> {
        let (give_back, buffers) = mpsc::channel(BUFFERS);
        for _ in 0..BUFFERS {
            // There is room for all of them.
            let _ = give_back.try_send(engine.allocate_pixels()?);
        }
        let identity = Arc::new(engine.bundle().identity());
        let preprocessor = engine.preprocessor().clone().in_mode(mode);
        let (encoder, decoder) = engine.split();
        Ok(Self {
            identity,
            preprocessor,
            encoder: Mutex::new(Some(encoder)),
            decoder: Mutex::new(Some(decoder)),
            buffers: tokio::sync::Mutex::new(buffers),
            give_back,
        })
    }

    /// Waits for a free pixel buffer.
    pub async fn buffer(&self) -> Result<Pixels> {
        let free = self.buffers.lock().await.recv().await;
        free.ok_or_else(|| Error::new(ErrorKind::Internal, "the pixel buffers are gone"))
    }

    /// Frees a pixel buffer.
    pub fn give_back(&self, pixels: Pixels) {
        let _ = self.give_back.try_send(pixels);
    }

    pub fn take_encoder(&self) -> Option<Encoder> {
        self.encoder.lock().take()
    }

    pub fn take_decoder(&self) -> Option<CaptionDecoder> {
        self.decoder.lock().take()
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Model").field(&self.identity.digest).finish()
    }
}

/// The model that images are decoded for, and the next one.
#[derive(Debug)]
pub struct Models {
    serving: Mutex<Arc<Model>>,
    next: Mutex<Option<Arc<Model>>>,
    next_changed: Notify,
    generation: AtomicU64,
}

impl Models {
    pub fn new(model: Model) -> Self {
        Self {
            serving: Mutex::new(Arc::new(model)),
            next: Mutex::default(),
            next_changed: Notify::new(),
            generation: AtomicU64::new(0),
        }
    }

    pub fn serving(&self) -> Arc<Model> {
        Arc::clone(&self.serving.lock())
    }

    /// How often the serving model was swapped.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Sets the next model; replaces one that does not serve yet.
    pub fn set_next(&self, model: Model) {
        *self.next.lock() = Some(Arc::new(model));
        self.next_changed.notify_one();
    }

    /// Waits until there is a next model.
    pub async fn next_changed(&self) {
        self.next_changed.notified().await;
    }

    /// Makes the next model the serving one, and returns it; None where there is no next one.
    pub fn swap(&self) -> Option<Arc<Model>> {
        let next = self.next.lock().take()?;
        *self.serving.lock() = Arc::clone(&next);
        self.generation.fetch_add(1, Ordering::Relaxed);
        Some(next)
    }
}

/// A stage's half of the engine, of one model at a time.
pub struct EngineSlot<H> {
    held: Option<(Arc<Identity>, H)>,
    take: fn(&Model) -> Option<H>,
}

impl<H> EngineSlot<H> {
    pub fn new(take: fn(&Model) -> Option<H>) -> Self {
        Self { held: None, take }
    }

    /// The half of `model`; the half of another model is dropped first.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for a model that was replaced before.
    pub fn of(&mut self, model: &Model) -> Result<&mut H> {
        self.held.take_if(|(owner, _)| !Arc::ptr_eq(owner, &model.identity));
        if self.held.is_none() {
            self.held = (self.take)(model).map(|half| (Arc::clone(&model.identity), half));
        }
        match &mut self.held {
            Some((_, half)) => Ok(half),
            None => Err(Error::new(ErrorKind::Internal, "a batch came for a model that is gone")
                .with_context("model", &model.identity.digest)),
        }
    }
}

/// Shows in metrics and log that `model` serves now, in place of `before`.
pub fn announce(metrics: &Metrics, model: &Identity, before: Option<&Identity>) {
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
