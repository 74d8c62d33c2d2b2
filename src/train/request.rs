//! A training run as its caller asks for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::device::DeviceKind;
use super::settings::Settings;
use crate::config::Runtime;

/// The inputs, outputs and settings of a training run.
pub struct Request {
    pub encoder: PathBuf,
    pub corpora: Vec<PathBuf>,
    pub out: PathBuf,
    /// Cached embeddings, which runs may share.
    pub cache: PathBuf,
    /// This run's checkpoint.
    pub checkpoint: PathBuf,
    pub settings: Settings,
    /// Bundle to fine-tune, instead of random weights and a new vocabulary.
    pub from: Option<PathBuf>,
    /// Text for the model card, such as measurements.
    pub notes: Option<PathBuf>,
    /// Whether the bundle contains the encoder's text tower.
    pub text_tower: bool,
    pub runtime: Runtime,
    pub device: DeviceKind,
    /// Continue from `checkpoint`.
    pub resume: bool,
    /// Set by the caller to end training after the current step, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}
