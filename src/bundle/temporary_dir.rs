//! The directory of a fetched bundle.

use std::path::{Path, PathBuf};

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub struct TemporaryDir(PathBuf);

impl TemporaryDir {
    /// Chooses a new name in `parent`. The download creates the directory.
    pub fn new(parent: &Path) -> Self {
        Self(parent.join(format!("fusioncap-model-{}", uuid::Uuid::new_v4())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            let dir = self.0.display();
            tracing::debug!(%error, %dir, "the directory of a fetched model was not removed");
        }
    }
}
