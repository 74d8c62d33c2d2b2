//! Checkpoints: the model, the optimizer's state and the position in the run. A run that is killed
//! at any moment leaves a complete checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use serde::{Deserialize, Serialize};

use super::curve::Epoch;
use super::settings::Settings;
use crate::bundle::write_json;
use crate::error::{Error, ErrorKind, Result};
use crate::model::FusionCap;

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// The inputs of a run; a checkpoint continues only a run with the same inputs.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Run {
    pub settings: Settings,
    /// Digest of the corpus.
    pub corpus: String,
    /// Name and version of the encoder.
    pub encoder: String,
    /// Digest of the bundle that is fine-tuned.
    #[serde(default)]
    pub from: Option<String>,
}

/// The position in a run.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct State {
    /// Steps done.
    pub step: usize,
    /// Sum of the losses of the current epoch so far.
    pub loss_sum: f64,
    pub curve: Vec<Epoch>,
}

#[derive(Deserialize, Serialize)]
struct Saved {
    run: Run,
    state: State,
}

/// Whether `folder` has a checkpoint to resume from.
pub fn exists(folder: &Path) -> bool {
    checkpoint_dir(folder).join(STATE).is_file()
}

/// The directory of the checkpoint: the previous one if a run was killed between the two renames of
/// [`Checkpoints::save`].
fn checkpoint_dir(folder: &Path) -> PathBuf {
    let last = previous_dir(folder);
    if !folder.exists() && last.is_dir() { last } else { folder.to_path_buf() }
}

fn previous_dir(folder: &Path) -> PathBuf {
    folder.with_extension("old")
}

/// The checkpoint of a run on disk.
pub struct Checkpoints {
    folder: PathBuf,
    run: Run,
}

impl Checkpoints {
    /// Stores the checkpoint of `run` in `folder`.
    pub fn new(folder: &Path, run: Run) -> Self {
        Self { folder: folder.to_path_buf(), run }
    }

    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Loads the weights into `model` and the moments into `optimizer`.
    ///
    /// # Errors
    /// `ErrorKind::Config` if there is no checkpoint or it belongs to another run; `Io` if it is
    /// damaged.
    pub fn load(
        &self,
        model: FusionCap,
        optimizer: ModuleOptimizer,
    ) -> Result<(FusionCap, ModuleOptimizer, State)> {
        let folder = checkpoint_dir(&self.folder);
        let damaged = |name: &str, error: String| {
            Error::new(ErrorKind::Io, "the checkpoint is damaged; train again without --resume")
                .with_context("path", folder.join(name).display())
                .with_source(error)
        };
        let bytes = fs::read(folder.join(STATE)).map_err(|error| {
            Error::new(ErrorKind::Config, "--resume: there is no checkpoint")
                .with_context("path", self.folder.display())
                .with_source(error)
        })?;
        let saved: Saved =
            serde_json::from_slice(&bytes).map_err(|error| damaged(STATE, error.to_string()))?;
        self.check(&saved.run)?;
        let restored = model
            .try_load_file(folder.join(MODEL))
            .map_err(|error| damaged(MODEL, error.to_string()))?;
        let moments = optimizer
            .load(folder.join(OPTIMIZER))
            .map_err(|error| damaged(OPTIMIZER, error.to_string()))?;
        Ok((restored, moments, saved.state))
    }

    /// Saves `model` as the best so far.
    pub fn save_best(&self, model: &FusionCap) -> Result<()> {
        let path = self.best_path();
        let staging = path.with_extension("part");
        let failed = |error: String| {
            Error::new(ErrorKind::Io, "can't write the best model")
                .with_context("path", path.display())
                .with_source(error)
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        }
        model.clone().save_file(&staging).map_err(|error| failed(error.to_string()))?;
        fs::rename(&staging, &path).map_err(|error| failed(error.to_string()))
    }

    /// Loads the best weights so far into `model`.
    pub fn load_best(&self, model: FusionCap) -> Result<FusionCap> {
        let path = self.best_path();
        model.try_load_file(&path).map_err(|error| {
            Error::new(ErrorKind::Io, "the best model is damaged")
                .with_context("path", path.display())
                .with_source(error.to_string())
        })
    }

    /// Beside the checkpoint directory, which every save replaces.
    fn best_path(&self) -> PathBuf {
        self.folder.with_extension("best")
    }

    fn check(&self, found: &Run) -> Result<()> {
        let differs = [
            ("settings", found.settings != self.run.settings),
            ("corpus", found.corpus != self.run.corpus),
            ("encoder", found.encoder != self.run.encoder),
            ("bundle to fine-tune", found.from != self.run.from),
        ];
        let Some((what, _)) = differs.into_iter().find(|(_, other)| *other) else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Config, "--resume: the checkpoint is of another run")
            .with_context("path", self.folder.display())
            .with_context("differs", what))
    }

    /// Writes a checkpoint to a staging directory, then renames it over the last one.
    pub fn save(
        &self,
        model: &FusionCap,
        optimizer: &ModuleOptimizer,
        state: &State,
    ) -> Result<()> {
        let staging = self.folder.with_extension("part");
        let failed = |error: String| {
            Error::new(ErrorKind::Io, "can't write a checkpoint")
                .with_context("path", staging.display())
                .with_source(error)
        };
        let _ = fs::remove_dir_all(&staging); // of an interrupted write
        fs::create_dir_all(&staging).map_err(|error| failed(error.to_string()))?;
        model.clone().save_file(staging.join(MODEL)).map_err(|error| failed(error.to_string()))?;
        optimizer.save(staging.join(OPTIMIZER)).map_err(|error| failed(error.to_string()))?;
        write_json(&staging.join(STATE), &Saved { run: self.run.clone(), state: state.clone() })?;
        // One of the two is always complete, and `checkpoint_dir` finds it.
        if self.folder.exists() {
            let old = previous_dir(&self.folder);
            let _ = fs::remove_dir_all(&old); // the one before the last
            fs::rename(&self.folder, &old).map_err(|error| failed(error.to_string()))?;
        }
        fs::rename(&staging, &self.folder).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::AdamWConfig;
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_kill_between_the_renames_loses_no_checkpoint() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("checkpoint");
        let mut settings = Settings::load(None).unwrap();
        settings.shape.hidden_size = 8;
        settings.shape.intermediate_size = 8;
        settings.local.enabled = false;
        let device = Device::flex().autodiff();
        let model = || FusionCap::new(&settings.model_spec(4, 10), &device);
        let optimizer = || AdamWConfig::new().init();
        let run = Run {
            settings: settings.clone(),
            corpus: String::new(),
            encoder: String::new(),
            from: None,
        };
        let checkpoints = Checkpoints::new(&folder, run);
        let save = |step| {
            let state = State { step, ..State::default() };
            checkpoints.save(&model(), &optimizer(), &state).unwrap();
        };
        let load = || checkpoints.load(model(), optimizer()).map(|(_, _, state)| state.step);
        assert!(!exists(&folder));
        assert_eq!(load().unwrap_err().exit_code(), 2);
        save(1);
        save(2);
        assert_eq!(load().unwrap(), 2);

        // The state after such a kill: the last one is renamed, the next one is not yet there.
        fs::remove_dir_all(previous_dir(&folder)).unwrap();
        fs::rename(&folder, previous_dir(&folder)).unwrap();
        assert!(exists(&folder));
        assert_eq!(load().unwrap(), 2);
        save(3);
        assert_eq!(load().unwrap(), 3);
        assert!(previous_dir(&folder).is_dir(), "kept until the next one has been renamed");
    }
}
