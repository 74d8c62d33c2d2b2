//! Polls the bundle in S3. One that has changed is fetched, loaded and tried beside the serving model,
//! and becomes the next model. A bundle that can't be used leaves the serving model where it is.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::sleep;

use crate::bundle::source::Snapshot;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::s3::Store;
use crate::telemetry::Metrics;
use crate::worker::models::{Model, Models};

/// How long a changed prefix must stay the same before it is fetched: files are uploaded one by one.
const SETTLING: Duration = Duration::from_secs(5);

pub struct ModelReloader {
    pub config: Config,
    /// The source of the serving model, as it was listed when that model was fetched.
    pub snapshot: Snapshot,
    pub store: Store,
    pub models: Arc<Models>,
    pub metrics: Arc<Metrics>,
}

/// Outcome of a check.
enum Checked {
    /// The bundle is the serving model.
    Same,
    /// The bundle with this digest is the next model.
    Changed(String),
}

impl ModelReloader {
    /// Runs until it is dropped; returns at once where `model.reload_interval_ms` is 0.
    pub async fn run(self) {
        let interval = Duration::from_millis(self.config.model.reload_interval_ms);
        if interval.is_zero() {
            return;
        }
        // The listing that is dealt with, and the listing of the last check.
        let Snapshot { source, listing } = &self.snapshot;
        let (mut settled, mut last) = (listing.clone(), listing.clone());
        // Workers that start together need not load together.
        let mut pause = interval.mul_f64(rand::rng().random_range(0.5..1.5));
        let mut digest = self.models.serving().identity.digest.clone();
        loop {
            sleep(pause).await;
            pause = interval;
            let listing = match source.list(&self.store).await {
                Ok(listing) => listing,
                Err(error) => {
                    self.unread(&error);
                    continue;
                }
            };
            if settled == listing {
                continue;
            }
            if last != listing {
                last = listing;
                pause = SETTLING.min(interval);
                continue;
            }
            match self.check(&digest).await {
                Ok(checked) => {
                    settled = listing;
                    self.metrics.model_reload_failed.record(0, &[]);
                    if let Checked::Changed(offered) = checked {
                        digest = offered;
                    }
                }
                // The store is at fault: check again.
                Err(error) if !is_the_bundles(&error) => self.unread(&error),
                Err(error) => {
                    settled = listing;
                    self.metrics.model_reload_failed.record(1, &[]);
                    tracing::error!(
                        path = source.uri(),
                        model = digest,
                        error = error.chain(),
                        "the changed bundle can't be used; the worker keeps its model"
                    );
                }
            }
        }
    }

    /// Fetches the bundle, and makes it the next model unless its digest is `digest`.
    async fn check(&self, digest: &str) -> Result<Checked> {
        let (bundle, _) = self.snapshot.source.fetch(&self.store).await?;
        if bundle.digest() == digest {
            return Ok(Checked::Same);
        }
        tracing::info!(
            model = bundle.digest(),
            path = self.snapshot.source.uri(),
            "loading a changed model"
        );
        let config = self.config.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let Config { runtime, model, batch, decode, .. } = &config;
            let engine = Engine::load(bundle, runtime, model, batch.size)?;
            Model::new(engine, decode.mode)
        });
        let model = loading.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "loading a model panicked").with_source(error)
        })??;
        let offered = model.identity.digest.clone();
        self.models.set_next(model);
        Ok(Checked::Changed(offered))
    }

    fn unread(&self, error: &Error) {
        tracing::warn!(
            path = self.snapshot.source.uri(),
            error = error.chain(),
            "the bundle can't be checked; the worker keeps its model"
        );
    }
}

fn is_the_bundles(error: &Error) -> bool {
    use ErrorKind::{Bundle, Config, Internal, Runtime};
    matches!(error.kind(), Bundle | Config | Internal | Runtime)
}
