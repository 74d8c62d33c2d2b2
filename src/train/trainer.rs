//! The training loop: batches of captions, noised and projected, in; a trained model out.
//!
//! Everything random comes from the seed and the step, never from what ran before, so that an
//! interrupted run continues exactly where it stopped.

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

use super::checkpoint::{Checkpoints, State};
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

    /// Entropy of the training captions' tokens in nats: the loss of a model that knows how
    /// frequent each token is and nothing else.
    pub fn unigram_entropy(&self) -> f64 {
        let mut counts = vec![0_u64; usize::from(u16::MAX) + 1];
        for token in self.tokens[..self.split].iter().flat_map(|caption| &caption[1..]) {
            counts[usize::from(*token)] += 1;
        }
        let total = counts.iter().sum::<u64>() as f64;
        let shares = counts.iter().filter(|count| **count > 0).map(|count| *count as f64 / total);
        shares.map(|share| -share * share.ln()).sum()
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
    /// What the losses compare with: see [`Examples::unigram_entropy`].
    pub unigram_entropy: f64,
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

/// What changes from step to step.
struct Training {
    model: FusionCap,
    optimizer: ModuleOptimizer,
    state: State,
}

pub struct Trainer<'a> {
    settings: &'a Settings,
    examples: Examples,
    memory: Tensor<2>,
    vocab_size: usize,
    checkpoints: Checkpoints,
    /// Set from outside to end the run after the step under way.
    stop: &'a AtomicBool,
    device: Device,
}

impl<'a> Trainer<'a> {
    /// `memory` is row-major `[captions, embedding_dim]`.
    pub fn new(
        settings: &'a Settings,
        examples: Examples,
        memory: &[f32],
        vocab_size: usize,
        checkpoints: Checkpoints,
        stop: &'a AtomicBool,
    ) -> Self {
        let device = Device::flex();
        let rows = memory.len() / examples.dim;
        let data = TensorData::new(memory.to_vec(), [rows, examples.dim]);
        let memory = Tensor::from_data(data, &device);
        Self { settings, examples, memory, vocab_size, checkpoints, stop, device }
    }

    /// Trains from the start, or from the checkpoint if `resume` says so.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if training diverges or is stopped, the latter after a checkpoint.
    pub fn run(&self, resume: bool) -> Result<Outcome> {
        let mut training = self.start(resume)?;
        let per_epoch = self.examples.split.div_ceil(self.settings.batch_size);
        let total = per_epoch * self.settings.epochs;
        let mut progress = Progress::new("training", total);
        let (started, mut tokens) = (Instant::now(), 0);
        let speed = |tokens: usize| tokens as f64 / started.elapsed().as_secs_f64();
        while training.state.step < total {
            let (epoch, first) = (training.state.step / per_epoch, training.state.step % per_epoch);
            for indices in &self.batches(epoch)[first..] {
                let batch = self.batch(indices, training.state.step as u64);
                let loss;
                (training, loss) = self.step(training, &batch, total)?;
                tokens += batch.tokens;
                let detail = format!("loss {loss:.3}, {:.0} tokens/s", speed(tokens));
                progress.update(training.state.step, &detail);
                if training.state.step.is_multiple_of(per_epoch) {
                    let passed = self.finish_epoch(&mut training, per_epoch);
                    progress.note(&format!(
                        "epoch {}: training loss {:.3}, held-out loss {:.3}",
                        passed.epoch, passed.training_loss, passed.held_out_loss
                    ));
                }
                self.keep(&training, total)?;
            }
        }
        progress.finish();
        Ok(Outcome {
            model: training.model,
            curve: training.state.curve,
            steps: training.state.step,
            unigram_entropy: self.examples.unigram_entropy(),
            tokens_per_second: speed(tokens),
        })
    }

    fn start(&self, resume: bool) -> Result<Training> {
        self.device.seed(self.settings.seed);
        let device = self.device.clone().autodiff();
        let dim = self.examples.dim;
        let model = FusionCap::new(&self.settings.shape, dim, self.vocab_size, &device);
        let optimizer = self.optimizer();
        if !resume {
            return Ok(Training { model, optimizer, state: State::default() });
        }
        let (restored, moments, state) = self.checkpoints.load(model, optimizer)?;
        Ok(Training { model: restored, optimizer: moments, state })
    }

    /// One step of the optimizer, and the loss before it.
    fn step(&self, training: Training, batch: &Batch, total: usize) -> Result<(Training, f64)> {
        let Training { model, mut optimizer, mut state } = training;
        let loss = self.loss(&model, batch, self.settings.label_smoothing);
        let value: f64 = loss.clone().into_scalar::<f32>().into();
        if !value.is_finite() {
            return Err(Error::new(
                ErrorKind::Runtime,
                "training diverged: the loss is no number; a lower learning_rate may help",
            )
            .with("step", state.step)
            .with("learning_rate", self.settings.learning_rate));
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let rate = learning_rate(self.settings, state.step, total);
        let updated = optimizer.step(rate, model, gradients);
        state.step += 1;
        state.loss_sum += value;
        Ok((Training { model: updated, optimizer, state }, value))
    }

    /// Writes a checkpoint where one is due; a stop writes one and ends the run. A finished run
    /// leaves one too: if the bundle then can't be written, no training is lost.
    fn keep(&self, training: &Training, total: usize) -> Result<()> {
        let step = training.state.step;
        let stop = self.stop.load(Ordering::Relaxed);
        if stop || step == total || step.is_multiple_of(self.settings.checkpoint_steps) {
            self.checkpoints.save(&training.model, &training.optimizer, &training.state)?;
        }
        if stop {
            return Err(Error::new(
                ErrorKind::Runtime,
                "interrupted; the same command with --resume goes on from the checkpoint",
            )
            .with("step", step));
        }
        Ok(())
    }

    fn finish_epoch(&self, training: &mut Training, per_epoch: usize) -> Epoch {
        let state = &mut training.state;
        let passed = Epoch {
            epoch: state.step / per_epoch,
            training_loss: state.loss_sum / per_epoch as f64,
            held_out_loss: self.held_out_loss(&training.model),
        };
        state.curve.push(passed);
        state.loss_sum = 0.0;
        passed
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_warms_up_and_cools_down() {
        let settings = Settings::load(None).unwrap();
        let share = |step| learning_rate(&settings, step, 4000) / settings.learning_rate;
        assert!(share(0) < 0.01, "{}", share(0));
        assert!((share(settings.warmup_steps) - 1.0).abs() < 1e-9);
        assert!((0.01..0.011).contains(&share(3999)), "{}", share(3999));
    }

    #[test]
    fn the_unigram_entropy_is_that_of_the_tokens_foretold() {
        let tokens = vec![vec![1, 5, 2], vec![1, 5, 6, 7, 2], vec![1, 8, 2]];
        let examples = Examples::new(tokens, Vec::new(), 0, 2);
        // 5, 2, 5, 6, 7, 2: two tokens a third each, two a sixth each.
        let expected = 2.0 / 3.0 * 3.0_f64.ln() + 1.0 / 3.0 * 6.0_f64.ln();
        assert!((examples.unigram_entropy() - expected).abs() < 1e-9);
    }
}
