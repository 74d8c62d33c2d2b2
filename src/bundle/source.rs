//! A bundle that lies in S3: fetched into a directory that is gone with the last who uses it, and
//! looked at again later. A store has no way to change many objects at once: whether what was
//! fetched belongs together, the manifest says.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Bundle, variants};
use crate::config::{Config, Precision, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::s3::Store;

/// An `s3://` prefix with a bundle, and what is wanted of it.
#[derive(Clone, Debug)]
pub struct Source {
    uri: String,
    precision: Precision,
    runtime: Runtime,
    /// Where directories for what is fetched are made.
    parent: PathBuf,
}

/// What is stored under a prefix: changes whenever one of its objects does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(Vec<(String, u64, String)>);

/// What a fetched bundle lies in.
#[derive(Debug)]
pub(super) struct Fetched {
    dir: PathBuf,
    source: Source,
    /// What was stored before it was fetched.
    state: State,
}

impl Source {
    /// What `model.path` leads to, where that is no directory. Directories for what is fetched are
    /// made in `parent`.
    pub fn new(config: &Config, parent: PathBuf) -> Self {
        let Config { model, runtime, .. } = config;
        let (uri, precision) = (model.path.clone(), model.precision);
        Self { uri, precision, runtime: runtime.clone(), parent }
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// What is stored now.
    ///
    /// # Errors
    /// `ErrorKind::ObjectNotFound` when nothing is; what the store fails with.
    pub async fn state(&self, store: &Store) -> Result<State> {
        let entries = store.list_prefix(&self.uri, |name| self.is_needed(name)).await?;
        let mark = |etag: Option<String>, modified: Option<i64>| {
            etag.or_else(|| modified.map(|time| time.to_string())).unwrap_or_default()
        };
        let entries = entries.into_iter();
        let mut objects: Vec<_> = entries
            .map(|entry| (entry.key, entry.bytes, mark(entry.etag, entry.modified)))
            .collect();
        objects.sort_unstable();
        Ok(State(objects))
    }

    /// Copies the bundle into a new directory and opens it there.
    ///
    /// # Errors
    /// What the store fails with; as [`Bundle::choose`].
    pub async fn fetch(&self, store: &Store) -> Result<Bundle> {
        let dir = self.parent.join(format!("fusioncap-model-{}", uuid::Uuid::new_v4()));
        let state = self.state(store).await?;
        let fetched = Fetched { dir, source: self.clone(), state };
        tracing::info!(path = self.uri, dir = %fetched.dir.display(), "fetching the model");
        store.download_prefix(&self.uri, &fetched.dir, |name| self.is_needed(name)).await?;
        // Reads every file.
        let opening = tokio::task::spawn_blocking(move || {
            let Source { precision, runtime, .. } = &fetched.source;
            let bundle = Bundle::choose(&fetched.dir, *precision, runtime)?;
            Ok(Bundle { fetched: Some(Arc::new(fetched)), ..bundle })
        });
        opening.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "opening a bundle panicked").because(error)
        })?
    }

    fn is_needed(&self, name: &str) -> bool {
        variants::is_needed(name, self.precision, &self.runtime)
    }
}

impl Bundle {
    /// Where it was fetched from, and what was stored there then; None for one in a directory of
    /// the user's.
    pub fn source(&self) -> Option<(&Source, &State)> {
        self.fetched.as_ref().map(|fetched| (&fetched.source, &fetched.state))
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(%error, dir = %self.dir.display(), "a fetched model was not removed");
        }
    }
}
