//! FusionCap: image references on Kafka become captions, exactly once, by a captioner that was
//! trained on text alone. `ARCHITECTURE.md` is the map of the modules below.

pub mod bundle;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod evaluate;
mod exit;
pub mod html;
pub mod image;
pub mod kafka;
pub mod message;
pub mod object_name;
pub mod plan;
pub mod progress;
pub mod reader;
pub mod redrive;
pub mod registry;
pub mod retry;
pub mod runtime;
pub mod s3;
pub mod telemetry;
pub mod text_tower;
pub mod verify;
pub mod worker;

#[cfg(feature = "demo")]
pub mod demo;

#[cfg(feature = "train")]
pub mod ablate;
#[cfg(feature = "train")]
pub mod encoder;
#[cfg(feature = "train")]
pub mod model;
#[cfg(feature = "train")]
pub mod onnx;
#[cfg(feature = "train")]
pub mod train;

pub use error::{Disposition, Error, ErrorKind, Result};
pub use exit::exit;
