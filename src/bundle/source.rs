//! A bundle in S3: fetched into a temporary directory, and listed again later to find changes.
//!
//! S3 can't change several objects at once. The manifest shows whether the fetched files belong
//! together.

use std::path::PathBuf;
use std::sync::Arc;

use super::temporary_dir::TemporaryDir;
use super::{Bundle, variants};
use crate::config::{Config, Precision, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::s3::Store;

/// An `s3://` prefix with a bundle, and the settings that select its variant.
#[derive(Clone, Debug)]
pub struct Source {
    uri: String,
    precision: Precision,
    runtime: Runtime,
    /// Parent of the temporary directories.
    parent: PathBuf,
}

/// The objects under a prefix: key, size and ETag (or modification time) of each. It differs
/// whenever one of them has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing(Vec<(String, u64, String)>);

/// A source, as it was listed when a bundle was fetched from it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub source: Source,
    pub listing: Listing,
}

impl Source {
    /// The source that `model.path` names. Bundles are fetched into directories in `parent`.
    pub fn new(config: &Config, parent: PathBuf) -> Self {
        let Config { model, runtime, .. } = config;
        let (uri, precision) = (model.path.clone(), model.precision);
        Self { uri, precision, runtime: runtime.clone(), parent }
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Lists the prefix.
    ///
    /// # Errors
    /// `ErrorKind::ObjectNotFound` if it is empty; errors of the store.
    pub async fn list(&self, store: &Store) -> Result<Listing> {
        let entries = store.list_prefix(&self.uri, |name| self.is_needed(name)).await?;
        let version = |etag: Option<String>, modified: Option<i64>| {
            etag.or_else(|| modified.map(|time| time.to_string())).unwrap_or_default()
        };
        let mut objects: Vec<_> = entries
            .into_iter()
            .map(|entry| (entry.key, entry.bytes, version(entry.etag, entry.modified)))
            .collect();
        objects.sort_unstable();
        Ok(Listing(objects))
    }

    /// Downloads the bundle into a new directory and opens it. The directory is removed when the
    /// last clone of the bundle is dropped. The snapshot was taken before the download.
    ///
    /// # Errors
    /// As [`Self::list`] and [`Bundle::choose`].
    pub async fn fetch(&self, store: &Store) -> Result<(Bundle, Snapshot)> {
        let dir = TemporaryDir::new(&self.parent);
        let listing = self.list(store).await?;
        tracing::info!(path = self.uri, dir = %dir.path().display(), "fetching the model");
        store.download_prefix(&self.uri, dir.path(), |name| self.is_needed(name)).await?;
        let (precision, runtime) = (self.precision, self.runtime.clone());
        // Opening a bundle reads every file.
        let opening = tokio::task::spawn_blocking(move || {
            let bundle = Bundle::choose(dir.path(), precision, &runtime)?;
            Ok(Bundle { _temporary_dir: Some(Arc::new(dir)), ..bundle })
        });
        let bundle = opening.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "opening a bundle panicked").with_source(error)
        })??;
        Ok((bundle, Snapshot { source: self.clone(), listing }))
    }

    fn is_needed(&self, name: &str) -> bool {
        variants::is_needed(name, self.precision, &self.runtime)
    }
}
