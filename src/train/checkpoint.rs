//! Checkpoints: the model, the optimiser's state and the place in the run, written so that a
//! run that is cut off at any moment leaves a whole one behind.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::trainer::Epoch;
use crate::bundle::write_json;
use crate::error::{Error, ErrorKind, Result};
use crate::model::FusionCap;

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// The place in a run.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Checkpoint {
    pub settings: Settings,
    /// Steps done.
    pub step: usize,
    /// Sum of this epoch's losses so far.
    pub loss_sum: f64,
    pub curve: Vec<Epoch>,
}

impl Checkpoint {
    pub fn fresh(settings: &Settings) -> Self {
        Self { settings: settings.clone(), step: 0, loss_sum: 0.0, curve: Vec::new() }
    }
}

/// A checkpoint found on disk.
pub struct Found {
    folder: PathBuf,
    state: Checkpoint,
}

impl Found {
    /// Loads the weights into `model` and the moments into `optimizer`.
    pub fn restore(
        self,
        model: FusionCap,
        optimizer: ModuleOptimizer,
    ) -> Result<(FusionCap, ModuleOptimizer, Checkpoint)> {
        let damaged = |name: &str, error: String| {
            Error::new(ErrorKind::Io, "a checkpoint is damaged; start again without --resume")
                .with("path", self.folder.join(name).display())
                .because(error)
        };
        let restored = model
            .try_load_file(self.folder.join(MODEL))
            .map_err(|error| damaged(MODEL, error.to_string()))?;
        let moments = optimizer
            .load(self.folder.join(OPTIMIZER))
            .map_err(|error| damaged(OPTIMIZER, error.to_string()))?;
        Ok((restored, moments, self.state))
    }
}

/// The checkpoint in `folder`, if there is one.
///
/// # Errors
/// `ErrorKind::Config` if it was made with other settings.
pub fn load(folder: &Path, settings: &Settings) -> Result<Option<Found>> {
    let folder = folder.join("checkpoint");
    let path = folder.join(STATE);
    let Ok(bytes) = fs::read(&path) else { return Ok(None) };
    let state: Checkpoint = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorKind::Io, "a checkpoint is damaged; start again without --resume")
            .with("path", path.display())
            .because(error)
    })?;
    if state.settings != *settings {
        return Err(Error::new(
            ErrorKind::Config,
            "--resume: the checkpoint was made with other settings",
        )
        .with("path", path.display()));
    }
    Ok(Some(Found { folder, state }))
}

/// Writes a checkpoint aside, then puts it in the place of the last one.
pub fn save(
    folder: &Path,
    model: &FusionCap,
    optimizer: &ModuleOptimizer,
    state: &Checkpoint,
) -> Result<()> {
    let (place, aside) = (folder.join("checkpoint"), folder.join("checkpoint.part"));
    let failed = |error: String| {
        Error::new(ErrorKind::Io, "can't write a checkpoint")
            .with("path", aside.display())
            .because(error)
    };
    let _ = fs::remove_dir_all(&aside); // what an interrupted write left
    fs::create_dir_all(&aside).map_err(|error| failed(error.to_string()))?;
    model.clone().save_file(aside.join(MODEL)).map_err(|error| failed(error.to_string()))?;
    optimizer.save(aside.join(OPTIMIZER)).map_err(|error| failed(error.to_string()))?;
    write_json(&aside.join(STATE), state)?;
    let old = folder.join("checkpoint.old");
    let _ = fs::remove_dir_all(&old);
    if place.exists() {
        fs::rename(&place, &old).map_err(|error| failed(error.to_string()))?;
    }
    fs::rename(&aside, &place).map_err(|error| failed(error.to_string()))
}
