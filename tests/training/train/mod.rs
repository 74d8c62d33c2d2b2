//! Training with a random encoder, and the exported graphs compared with the model in burn.

mod exported;
mod runs;

use std::path::PathBuf;

use fusioncap::train::settings::Settings;
use parking_lot::{Mutex, MutexGuard};

/// burn initialises weights from one generator per process, so tests that use it are serialised.
fn take_turn() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock()
}

fn fixture(name: &str) -> PathBuf {
    kit::root("tests/fixtures/train").join(name)
}

/// The settings of models/random, with two short epochs of seven steps.
fn settings() -> Settings {
    let mut settings = Settings::load(Some(&fixture("random.toml"))).unwrap();
    settings.epochs = 2;
    settings.batch_size = 64;
    settings.warmup_steps = 4;
    settings.noise.sigma = 0.05;
    settings
}
