//! Training speed in tokens per second: the model and settings of `models/tiny` on captions of
//! random tokens with lengths as in COCO. `make bench-train`.

use std::sync::atomic::AtomicBool;

use fusioncap::train::checkpoint::{Checkpoints, Run};
use fusioncap::train::device::DeviceKind;
use fusioncap::train::examples::Examples;
use fusioncap::train::noun_bank::NounBank;
use fusioncap::train::nouns::Nouns;
use fusioncap::train::settings::Settings;
use fusioncap::train::trainer::Trainer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DIM: usize = 384;
const NOUNS: usize = 1700;
const STEPS: usize = 60;

fn main() {
    let mut settings = Settings::load(Some(&kit::root("models/tiny.toml"))).expect("settings");
    (settings.epochs, settings.patience, settings.checkpoint_steps) = (1, 0, usize::MAX);
    let mut generator = StdRng::seed_from_u64(settings.seed);
    let (training, held_out) = (STEPS * settings.batch_size, 64);
    let examples = examples(&mut generator, &settings, training, held_out);
    let memory = units(&mut generator, settings.projection.memory_size);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = Run {
        settings: settings.clone(),
        corpus: String::new(),
        encoder: String::new(),
        from: None,
    };
    let checkpoints = Checkpoints::new(&folder.path().join("checkpoint"), run);
    let (vocab, stop) = (settings.vocab_size, AtomicBool::new(false));
    let device = DeviceKind::Cpu.device().expect("a processor");
    let trainer = Trainer::new(&settings, &examples, &memory, vocab, checkpoints, &stop, device);
    let outcome = trainer.run(false, None).expect("the training ends");
    let speed = outcome.tokens_per_second.expect("steps were made");
    println!("{speed:.0} tokens/s over {} steps", outcome.steps);
}

fn examples(
    generator: &mut StdRng,
    settings: &Settings,
    training: usize,
    held_out: usize,
) -> Examples {
    let count = training + held_out;
    let caption = |generator: &mut StdRng| -> Vec<u16> {
        let length = generator.random_range(10..=18);
        (0..length).map(|_| generator.random_range(3..settings.vocab_size as u16)).collect()
    };
    let nouns = Nouns {
        names: (0..NOUNS).map(|noun| noun.to_string()).collect(),
        by_caption: (0..count)
            .map(|_| (0..3).map(|_| generator.random_range(0..NOUNS as u16)).collect())
            .collect(),
    };
    Examples {
        tokens: (0..count).map(|_| caption(generator)).collect(),
        embeddings: units(generator, count),
        dim: DIM,
        split: training,
        nouns: NounBank::new(nouns, units(generator, NOUNS), DIM),
        token_states: None,
    }
}

/// Rows of unit length.
fn units(generator: &mut StdRng, rows: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..rows * DIM).map(|_| generator.random::<f32>() - 0.5).collect();
    for row in values.chunks_exact_mut(DIM) {
        let length = row.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
        row.iter_mut().for_each(|entry| *entry /= length);
    }
    values
}
