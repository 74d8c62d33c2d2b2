//! The training loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::grad_clipping::GradientClippingConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};

use super::checkpoint::{Checkpoints, State};
use super::curve::{Epoch, best_epoch};
use super::examples::{Batch, Examples};
use super::settings::Settings;
use super::warm_start::WarmStart;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Banks, FusionCap, ModelSpec};
use crate::progress::Progress;

/// The result of training.
pub struct Outcome {
    pub model: FusionCap,
    pub curve: Vec<Epoch>,
    pub steps: usize,
    /// Baseline for the losses: [`Examples::unigram_entropy`].
    pub unigram_entropy: f64,
    /// Over the steps of this run; None if the checkpoint was already at the end.
    pub tokens_per_second: Option<f64>,
}

/// The state that every step changes.
struct Training {
    model: FusionCap,
    optimizer: ModuleOptimizer,
    state: State,
}

pub struct Trainer<'a> {
    settings: &'a Settings,
    examples: &'a Examples,
    banks: Banks,
    vocab_size: usize,
    checkpoints: Checkpoints,
    /// Set by the caller to end the run after the current step.
    stop: &'a AtomicBool,
    /// With autodiff.
    device: Device,
}

impl<'a> Trainer<'a> {
    /// `memory` is row-major `[captions, embedding_dim]`; `device` has autodiff.
    pub fn new(
        settings: &'a Settings,
        examples: &'a Examples,
        memory: &[f32],
        vocab_size: usize,
        checkpoints: Checkpoints,
        stop: &'a AtomicBool,
        device: Device,
    ) -> Self {
        let rows = |values: &[f32]| {
            let shape = [values.len() / examples.dim, examples.dim];
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &device)
        };
        let nouns = &examples.nouns;
        let banks = Banks {
            memory: rows(memory),
            nouns: (!nouns.is_empty()).then(|| rows(&nouns.embeddings)),
        };
        Self { settings, examples, banks, vocab_size, checkpoints, stop, device }
    }

    fn model_spec(&self) -> ModelSpec<'a> {
        self.settings.model_spec(self.examples.dim, self.vocab_size)
    }

    /// Trains from random weights, from `warm_start`, or from the checkpoint if `resume` is set.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if training diverges, or is stopped (with a checkpoint written).
    pub fn run(&self, resume: bool, warm_start: Option<&WarmStart>) -> Result<Outcome> {
        let mut training = self.start(resume, warm_start)?;
        let per_epoch = self.examples.batches_per_epoch(self.settings);
        let total = per_epoch * self.settings.epochs;
        let progress =
            Progress::new("training", "steps", total as u64).resumed_at(training.state.step as u64);
        let (started, mut tokens) = (Instant::now(), 0);
        let speed = |tokens: usize| tokens as f64 / started.elapsed().as_secs_f64();
        while training.state.step < total && !self.is_out_of_patience(&training.state.curve) {
            let (epoch, first) = (training.state.step / per_epoch, training.state.step % per_epoch);
            for indices in &self.examples.epoch(epoch, self.settings)[first..] {
                let step = training.state.step as u64;
                let batch = self.examples.batch(indices, step, self.settings, &self.device)?;
                let loss;
                tokens += batch.num_tokens;
                (training, loss) = self.step(training, batch, total)?;
                let detail = format!("loss {loss:.3}, {:.0} tokens/s", speed(tokens));
                progress.set(training.state.step as u64, detail);
                if training.state.step.is_multiple_of(per_epoch) {
                    let passed = self.finish_epoch(&mut training, per_epoch)?;
                    progress.note(&format!(
                        "epoch {}: training loss {:.3}, held-out loss {:.3}",
                        passed.epoch, passed.training_loss, passed.held_out_loss
                    ));
                }
                self.checkpoint_if_due(&training, total)?;
            }
        }
        progress.finish();
        let curve = &training.state.curve;
        let model = match best_epoch(curve) {
            Some(best) if best + 1 < curve.len() => self.checkpoints.load_best(training.model)?,
            _ => training.model,
        };
        Ok(Outcome {
            model,
            curve: training.state.curve,
            steps: training.state.step,
            unigram_entropy: self.examples.unigram_entropy(),
            tokens_per_second: (tokens > 0).then(|| speed(tokens)),
        })
    }

    fn start(&self, resume: bool, warm_start: Option<&WarmStart>) -> Result<Training> {
        self.device.seed(self.settings.seed);
        let model = FusionCap::new(&self.model_spec(), &self.device);
        let optimizer = self.optimizer();
        if !resume {
            let model = match warm_start {
                Some(start) => start.apply(model, self.checkpoints.run())?,
                None => model,
            };
            return Ok(Training { model, optimizer, state: State::default() });
        }
        let (restored, moments, state) = self.checkpoints.load(model, optimizer)?;
        Ok(Training { model: restored, optimizer: moments, state })
    }

    /// One optimizer step; returns the loss before it.
    fn step(&self, training: Training, batch: Batch, total: usize) -> Result<(Training, f64)> {
        let Training { model, mut optimizer, mut state } = training;
        let Losses { caption: loss, divergence } =
            self.losses(&model, batch, self.settings.label_smoothing);
        let value: f64 = loss.clone().into_scalar::<f32>().into();
        if !value.is_finite() {
            return Err(Error::new(
                ErrorKind::Runtime,
                "training diverged: the loss is not finite; a lower learning_rate may help",
            )
            .with_context("step", state.step)
            .with_context("learning_rate", self.settings.learning_rate));
        }
        let whole = match divergence {
            Some(divergence) => loss + divergence.mul_scalar(self.settings.noise.kl_weight),
            None => loss,
        };
        let gradients = GradientsParams::from_grads(whole.backward(), &model);
        let rate = learning_rate(self.settings, state.step, total);
        let updated = optimizer.step(rate, model, gradients);
        state.step += 1;
        state.loss_sum += value;
        Ok((Training { model: updated, optimizer, state }, value))
    }

    /// Writes a checkpoint every `checkpoint_steps`, at a stop and at the end of the run, so that no
    /// training is lost if the bundle can't be written.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` at a stop.
    fn checkpoint_if_due(&self, training: &Training, total: usize) -> Result<()> {
        let step = training.state.step;
        let stop = self.stop.load(Ordering::Relaxed);
        let finished = step == total || self.is_out_of_patience(&training.state.curve);
        if stop || finished || step.is_multiple_of(self.settings.checkpoint_steps) {
            self.checkpoints.save(&training.model, &training.optimizer, &training.state)?;
        }
        if stop {
            return Err(Error::new(
                ErrorKind::Runtime,
                "interrupted; run the same command to continue, `train` with --resume",
            )
            .with_context("step", step));
        }
        Ok(())
    }

    /// Whether the held-out loss has not fallen for `patience` epochs.
    fn is_out_of_patience(&self, curve: &[Epoch]) -> bool {
        let patience = self.settings.patience;
        patience > 0 && best_epoch(curve).is_some_and(|best| curve.len() - 1 - best >= patience)
    }

    fn finish_epoch(&self, training: &mut Training, per_epoch: usize) -> Result<Epoch> {
        let state = &mut training.state;
        let passed = Epoch {
            epoch: state.step / per_epoch,
            training_loss: state.loss_sum / per_epoch as f64,
            held_out_loss: self.held_out_loss(&training.model)?,
        };
        state.curve.push(passed);
        state.loss_sum = 0.0;
        if best_epoch(&state.curve).is_some_and(|best| best + 1 == state.curve.len()) {
            self.checkpoints.save_best(&training.model)?;
        }
        Ok(passed)
    }

    fn optimizer(&self) -> ModuleOptimizer {
        AdamWConfig::new()
            .with_weight_decay(self.settings.weight_decay)
            .with_epsilon(1e-8)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(self.settings.gradient_norm)))
            .init()
    }

    /// Mean cross-entropy per token in nats with label smoothing (Szegedy et al. 2015), and the KL
    /// divergence of learned noise.
    fn losses(&self, model: &FusionCap, batch: Batch, smoothing: f32) -> Losses {
        let output = model.forward(&self.model_spec(), &self.banks, batch.conditions, batch.inputs);
        let [rows, columns, vocab] = output.logits.dims();
        let log_probabilities = log_softmax(output.logits.reshape([rows * columns, vocab]), 1);
        let mut cost = log_probabilities.clone().gather(1, batch.targets).neg();
        if smoothing > 0.0 {
            let uniform = log_probabilities.mean_dim(1).neg();
            cost = cost.mul_scalar(1.0 - smoothing) + uniform.mul_scalar(smoothing);
        }
        let caption = (cost * batch.target_mask.clone()).sum() / batch.target_mask.sum();
        Losses { caption, divergence: output.divergence }
    }

    /// Mean cross-entropy per token of the held-out captions, in nats.
    fn held_out_loss(&self, model: &FusionCap) -> Result<f64> {
        let (mut sum, mut total) = (0.0, 0);
        for batch in self.examples.held_out(self.settings, &self.device) {
            let batch = batch?;
            let tokens = batch.num_tokens;
            let loss = self.losses(model, batch, 0.0).caption.into_scalar::<f32>();
            sum += f64::from(loss) * tokens as f64;
            total += tokens;
        }
        Ok(sum / total.max(1) as f64)
    }
}

/// The terms of the loss.
struct Losses {
    caption: Tensor<1>,
    divergence: Option<Tensor<1>>,
}

/// Linear warm-up to the peak, then cosine decay to a hundredth of it.
fn learning_rate(settings: &Settings, step: usize, total: usize) -> f64 {
    let warmup = settings.warmup_steps.min(total / 2);
    if step < warmup {
        return settings.learning_rate * (step + 1) as f64 / warmup as f64;
    }
    let passed = (step - warmup) as f64 / (total - warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * passed).cos());
    settings.learning_rate * (0.01 + 0.99 * cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_warms_up_and_decays() {
        let settings = Settings::load(None).unwrap();
        let share = |step| learning_rate(&settings, step, 4000) / settings.learning_rate;
        assert!(share(0) < 0.01, "{}", share(0));
        assert!((share(settings.warmup_steps) - 1.0).abs() < 1e-9);
        assert!((0.01..0.011).contains(&share(3999)), "{}", share(3999));
    }
}
