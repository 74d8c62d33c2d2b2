//! The bundle in S3 is looked at again and again. One that has changed is fetched, loaded and tried
//! beside the model in use, and offered to the stages (`models`). Whatever is wrong with it leaves
//! the model in use where it is.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::sleep;

use crate::bundle::source::{Source, State};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::s3::Store;
use crate::telemetry::Metrics;
use crate::worker::models::{Model, Models};

/// What is stored must have stood still for so long: files are uploaded one after the other.
const SETTLING: Duration = Duration::from_secs(5);

pub struct Rollout {
    pub config: Config,
    pub source: Source,
    /// What was stored when the model in use was fetched.
    pub seen: State,
    pub store: Store,
    pub models: Arc<Models>,
    pub metrics: Arc<Metrics>,
}

/// What became of a state of the store.
enum Looked {
    /// It is the model in use.
    Same,
    /// It was offered, by this digest.
    Changed(String),
}

impl Rollout {
    /// Runs until it is dropped, or at once to its end where `model.reload_interval_ms` is 0.
    pub async fn run(self) {
        let interval = Duration::from_millis(self.config.model.reload_interval_ms);
        if interval.is_zero() {
            return;
        }
        // The state that needs no more looking at, and the one of the last look.
        let (mut settled, mut last) = (self.seen.clone(), self.seen.clone());
        // Workers that were started at once need not load at once.
        let mut pause = interval.mul_f64(rand::rng().random_range(0.5..1.5));
        let mut digest = self.models.serving().identity.digest.clone();
        loop {
            sleep(pause).await;
            pause = interval;
            let state = match self.source.state(&self.store).await {
                Ok(state) => state,
                Err(error) => {
                    self.unread(&error);
                    continue;
                }
            };
            if settled == state {
                continue;
            }
            if last != state {
                last = state;
                pause = SETTLING.min(interval);
                continue;
            }
            match self.look(&digest).await {
                Ok(looked) => {
                    settled = state;
                    self.metrics.model_refused.record(0, &[]);
                    if let Looked::Changed(offered) = looked {
                        digest = offered;
                    }
                }
                // The store's fault, which is asked again.
                Err(error) if !is_the_bundles(&error) => self.unread(&error),
                Err(error) => {
                    settled = state;
                    self.metrics.model_refused.record(1, &[]);
                    tracing::error!(
                        path = self.source.uri(),
                        model = digest,
                        error = error.chain(),
                        "the changed bundle can't be used; the worker goes on with its model"
                    );
                }
            }
        }
    }

    /// Fetches what is stored, and offers it unless it is `digest`, which was offered last.
    async fn look(&self, digest: &str) -> Result<Looked> {
        let bundle = self.source.fetch(&self.store).await?;
        if bundle.digest() == digest {
            return Ok(Looked::Same);
        }
        tracing::info!(
            model = bundle.digest(),
            path = self.source.uri(),
            "loading a changed model"
        );
        let config = self.config.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let Config { runtime, model, batch, decode, .. } = &config;
            let engine = Engine::load(bundle, runtime, model, batch.size)?;
            Model::new(engine, decode.mode)
        });
        let model = loading.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "loading a model panicked").because(error)
        })??;
        let offered = model.identity.digest.clone();
        self.models.offer(model);
        Ok(Looked::Changed(offered))
    }

    fn unread(&self, error: &Error) {
        tracing::warn!(
            path = self.source.uri(),
            error = error.chain(),
            "the bundle can't be looked at again; the worker goes on with its model"
        );
    }
}

fn is_the_bundles(error: &Error) -> bool {
    use ErrorKind::{Bundle, Config, Internal, Runtime};
    matches!(error.kind(), Bundle | Config | Internal | Runtime)
}
