//! The training loop: batches of captions, noised and projected, in; a trained model out.
//!
//! Everything random comes from the seed and the step, never from what ran before, so that an
//! interrupted run continues exactly where it stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::grad_clipping::GradientClippingConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::checkpoint::{self, Checkpoint};
use super::progress::Progress;
use super::settings::Settings;
use super::tokenizer::PAD;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{FusionCap, noise, projection};

/// Batches among which captions are sorted by length, so that little of a batch is padding.
const BUCKET: usize = 64;
/// Stands for a step in the noise of the held-out captions.
const HELD_OUT_STREAM: u64 = u64::MAX;

/// Captions as tokens beside their embeddings; those from `split` on are held out.
pub struct Examples {
    tokens: Vec<Vec<u16>>,
    embeddings: Vec<f32>,
    dim: usize,
    split: usize,
}

impl Examples {
    pub fn new(tokens: Vec<Vec<u16>>, embeddings: Vec<f32>, dim: usize, split: usize) -> Self {
        Self { tokens, embeddings, dim, split }
    }

    fn embedding(&self, index: usize) -> &[f32] {
        &self.embeddings[index * self.dim..(index + 1) * self.dim]
    }
}

/// The loss after one pass over the corpus.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct Epoch {
    pub epoch: usize,
    /// Mean over the pass, with label smoothing, in nats a token.
    pub training_loss: f64,
    /// Without label smoothing, in nats a token.
    pub held_out_loss: f64,
}

/// A finished training.
pub struct Outcome {
    pub model: FusionCap,
    pub curve: Vec<Epoch>,
    pub steps: usize,
    pub tokens_per_second: f64,
}

/// Captions as tensors: what the decoder reads, what it should say, where that counts.
struct Batch {
    projected: Tensor<2>,
    inputs: Tensor<2, Int>,
    /// `[batch * tokens, 1]`
    targets: Tensor<2, Int>,
    /// `[batch * tokens, 1]`; 1 where a target is a token, 0 where it is padding.
    counts: Tensor<2>,
    tokens: usize,
}

pub struct Trainer<'a> {
    settings: &'a Settings,
    examples: Examples,
    memory: Tensor<2>,
    vocab_size: usize,
    folder: PathBuf,
    device: Device,
    interrupted: Arc<AtomicBool>,
}

impl<'a> Trainer<'a> {
    /// `memory` is row-major `[captions, embedding_dim]`; checkpoints go to `folder`.
    pub fn new(
        settings: &'a Settings,
        examples: Examples,
        memory: &[f32],
        vocab_size: usize,
        folder: &Path,
    ) -> Self {
        let device = Device::flex();
        let rows = memory.len() / examples.dim;
        let data = TensorData::new(memory.to_vec(), [rows, examples.dim]);
        Self {
            settings,
            memory: Tensor::from_data(data, &device),
            examples,
            vocab_size,
            folder: folder.into(),
            device,
            interrupted: interrupt_flag(),
        }
    }

    /// Trains from the start, or from the newest checkpoint if `resume` says so.
    pub fn run(&self, resume: bool) -> Result<Outcome> {
        self.device.seed(self.settings.seed);
        let device = self.device.clone().autodiff();
        let dim = self.examples.dim;
        let mut model = FusionCap::new(&self.settings.shape, dim, self.vocab_size, &device);
        let mut optimizer = self.optimizer();
        let mut state = Checkpoint::fresh(self.settings);
        if resume && let Some(found) = checkpoint::load(&self.folder, self.settings)? {
            (model, optimizer, state) = found.restore(model, optimizer)?;
        }
        let per_epoch = self.examples.split.div_ceil(self.settings.batch_size);
        let total = per_epoch * self.settings.epochs;
        let mut progress = Progress::new("training", total);
        let (started, mut tokens) = (Instant::now(), 0);
        while state.step < total {
            let epoch = state.step / per_epoch;
            let batches = self.batches(epoch);
            for indices in &batches[state.step % per_epoch..] {
                let batch = self.batch(indices, state.step as u64);
                tokens += batch.tokens;
                let loss = self.loss(&model, &batch, self.settings.label_smoothing);
                let value: f64 = loss.clone().into_scalar::<f32>().into();
                if !value.is_finite() {
                    return Err(Error::new(
                        ErrorKind::Runtime,
                        "training diverged: the loss is no number",
                    )
                    .with("step", state.step));
                }
                let gradients = GradientsParams::from_grads(loss.backward(), &model);
                let rate = learning_rate(self.settings, state.step, total);
                model = optimizer.step(rate, model, gradients);
                state.step += 1;
                state.loss_sum += value;
                let speed = tokens as f64 / started.elapsed().as_secs_f64();
                progress.update(state.step, &format!("loss {value:.3}, {speed:.0} tokens/s"));
                let due = state.step.is_multiple_of(self.settings.checkpoint_steps);
                let stop = self.interrupted.load(Ordering::Relaxed);
                if due || stop {
                    checkpoint::save(&self.folder, &model, &optimizer, &state)?;
                }
                if stop {
                    return Err(Error::new(
                        ErrorKind::Runtime,
                        "interrupted; `--resume` continues from the checkpoint",
                    )
                    .with("step", state.step));
                }
            }
            let held_out_loss = self.held_out_loss(&model);
            let training_loss = state.loss_sum / per_epoch as f64;
            state.curve.push(Epoch { epoch: epoch + 1, training_loss, held_out_loss });
            state.loss_sum = 0.0;
            eprintln!(
                "epoch {}: training loss {training_loss:.3}, held-out loss {held_out_loss:.3}",
                epoch + 1
            );
            checkpoint::save(&self.folder, &model, &optimizer, &state)?;
        }
        progress.finish();
        let tokens_per_second = tokens as f64 / started.elapsed().as_secs_f64();
        Ok(Outcome { model, curve: state.curve, steps: state.step, tokens_per_second })
    }

    fn optimizer(&self) -> ModuleOptimizer {
        AdamWConfig::new()
            .with_weight_decay(self.settings.weight_decay)
            .with_epsilon(1e-8)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(self.settings.gradient_norm)))
            .init()
    }

    /// The training captions in the order of `epoch`, in batches of like length.
    fn batches(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut generator = stream(self.settings.seed, epoch as u64 + (1 << 40));
        let mut order: Vec<usize> = (0..self.examples.split).collect();
        order.shuffle(&mut generator);
        let size = self.settings.batch_size;
        for bucket in order.chunks_mut(size * BUCKET) {
            bucket.sort_by_key(|index| self.examples.tokens[*index].len());
        }
        let mut batches: Vec<Vec<usize>> = order.chunks(size).map(<[usize]>::to_vec).collect();
        batches.shuffle(&mut generator);
        batches
    }

    fn batch(&self, indices: &[usize], noise_stream: u64) -> Batch {
        let rows = indices.len();
        let captions = || indices.iter().map(|index| &self.examples.tokens[*index]);
        let longest = captions().map(Vec::len).max().unwrap_or(2) - 1;
        let mut inputs = vec![PAD; rows * longest];
        let mut targets = vec![PAD; rows * longest];
        let mut counts = vec![0.0_f32; rows * longest];
        for (row, caption) in captions().enumerate() {
            for (column, pair) in caption.windows(2).enumerate() {
                inputs[row * longest + column] = i64::from(pair[0]);
                targets[row * longest + column] = i64::from(pair[1]);
                counts[row * longest + column] = 1.0;
            }
        }
        let mut embeddings: Vec<f32> =
            indices.iter().flat_map(|index| self.examples.embedding(*index)).copied().collect();
        let mut generator = stream(self.settings.seed, noise_stream);
        noise::blur(&mut embeddings, self.settings.noise_sigma, &mut generator);
        let blurred =
            Tensor::from_data(TensorData::new(embeddings, [rows, self.examples.dim]), &self.device);
        let projected = projection::project(blurred, &self.memory, self.settings.temperature);
        let autodiff = self.device.clone().autodiff();
        let tokens = captions().map(|caption| caption.len() - 1).sum();
        Batch {
            projected: projected.autodiff(),
            inputs: Tensor::from_data(TensorData::new(inputs, [rows, longest]), &autodiff),
            targets: Tensor::from_data(TensorData::new(targets, [rows * longest, 1]), &autodiff),
            counts: Tensor::from_data(TensorData::new(counts, [rows * longest, 1]), &autodiff),
            tokens,
        }
    }

    /// Mean cross-entropy of a token in nats, with label smoothing (Szegedy et al. 2015).
    fn loss(&self, model: &FusionCap, batch: &Batch, smoothing: f32) -> Tensor<1> {
        let logits = model.forward(batch.projected.clone(), batch.inputs.clone());
        let [rows, columns, vocab] = logits.dims();
        let log_probabilities = log_softmax(logits.reshape([rows * columns, vocab]), 1);
        let mut cost = log_probabilities.clone().gather(1, batch.targets.clone()).neg();
        if smoothing > 0.0 {
            let uniform = log_probabilities.mean_dim(1).neg();
            cost = cost.mul_scalar(1.0 - smoothing) + uniform.mul_scalar(smoothing);
        }
        (cost * batch.counts.clone()).sum() / batch.counts.clone().sum()
    }

    /// Mean cross-entropy of a token of the held-out captions, in nats.
    fn held_out_loss(&self, model: &FusionCap) -> f64 {
        let mut indices: Vec<usize> = (self.examples.split..self.examples.tokens.len()).collect();
        indices.sort_by_key(|index| self.examples.tokens[*index].len());
        let (mut sum, mut tokens) = (0.0, 0);
        for chunk in indices.chunks(self.settings.batch_size) {
            let batch = self.batch(chunk, HELD_OUT_STREAM - chunk[0] as u64);
            let loss = self.loss(model, &batch, 0.0).into_scalar::<f32>();
            sum += f64::from(loss) * batch.tokens as f64;
            tokens += batch.tokens;
        }
        sum / tokens.max(1) as f64
    }
}

/// Linear warm-up to the peak, then a cosine down to a hundredth of it.
fn learning_rate(settings: &Settings, step: usize, total: usize) -> f64 {
    let warmup = settings.warmup_steps.min(total / 2);
    if step < warmup {
        return settings.learning_rate * (step + 1) as f64 / warmup as f64;
    }
    let passed = (step - warmup) as f64 / (total - warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * passed).cos());
    settings.learning_rate * (0.01 + 0.99 * cosine)
}

/// An independent generator for each purpose and step.
fn stream(seed: u64, number: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Set by the first Ctrl-C; a second one ends the process as usual.
fn interrupt_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        if runtime.block_on(tokio::signal::ctrl_c()).is_err() {
            return;
        }
        eprintln!("interrupted: writing a checkpoint; interrupt again to stop at once");
        seen.store(true, Ordering::Relaxed);
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            std::process::exit(130);
        }
    });
    flag
}
