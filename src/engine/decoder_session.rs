//! A session of the bundle's decoder graph, which runs one beam search at a time.
//!
//! The key-value cache stays on the device: each step's `present` is bound as the next step's
//! `past`. Only the best candidates of each image are copied to the host. An image whose caption
//! is decided leaves the batch: the next step's `parents` do not name its rows.

use std::fmt::Debug;

use half::f16;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, Tensor, TensorElementType};

use super::beam_search::{BeamSearch, Candidates, Hypothesis};
use super::micro_batch::MIN_ROWS;
use super::ort_values::{read_output, runtime_error, take_output};
use crate::bundle::{Bundle, DECODER, GenerationConfig};
use crate::config::{Provider, Runtime};
use crate::error::Result;

pub struct DecoderSession {
    session: Session,
    binding: IoBinding,
    /// Memory of the key-value cache.
    device: MemoryInfo<'static>,
    host: MemoryInfo<'static>,
    /// Whether the cache holds 16-bit floats, as in an fp16 variant.
    half_cache: bool,
}

impl DecoderSession {
    /// # Errors
    /// `ErrorKind::Runtime` if the graph or its provider can't be used.
    pub fn load(bundle: &Bundle, runtime: &Runtime) -> Result<Self> {
        let path = bundle.path(DECODER);
        let (session, provider) = crate::runtime::session_and_provider(runtime, &path)?;
        let binding = session.create_binding().map_err(runtime_error)?;
        let half = Some(TensorElementType::Float16);
        let is_half = |input: &Outlet| input.dtype().tensor_type() == half;
        let half_cache =
            session.inputs().iter().any(|input| input.name() == "past" && is_half(input));
        Ok(Self {
            half_cache,
            session,
            binding,
            device: cache_memory(provider, runtime.device_id)?,
            host: cpu()?,
        })
    }

    /// Generates a caption for each image of `prefix`, `[images, prefix_length, hidden_size]`.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the model fails; `Bundle` if its outputs have the wrong size.
    pub fn generate(
        &mut self,
        bundle: &Bundle,
        settings: &GenerationConfig,
        prefix: &[f32],
    ) -> Result<Vec<Hypothesis>> {
        let model = &bundle.config;
        let images = prefix.len() / (model.prefix_length * model.hidden_size).max(1);
        let rows = images.max(MIN_ROWS);
        let mut prefix = prefix.to_vec();
        if images < rows {
            prefix.extend_from_within(..);
        }
        let head_size = model.hidden_size / model.num_attention_heads;
        let cache = [2 * model.num_hidden_layers, rows, model.num_attention_heads, 0, head_size];
        // The special tokens, and at most one for each token of the caption.
        let banned = model.max_length + 2;
        let mut search = BeamSearch::new(model, settings, images);

        // The first step, on the prefix and the begin token, has one row per image.
        let prefix = Tensor::from_array(([rows, model.prefix_length, model.hidden_size], prefix));
        let mut step = Step {
            prefix: prefix.map_err(runtime_error)?.into_dyn(),
            past: if self.half_cache { empty::<f16>(&cache)? } else { empty::<f32>(&cache)? },
            input_ids: vec![model.bos_token_id; rows],
            parents: (0..rows as i64).collect(),
            beam_scores: vec![0.0; rows],
            banned_ids: first_banned_ids(bundle, rows, banned),
        };
        let mut width = 1;
        loop {
            let output = self.run_step(step, width, banned, model.num_candidates)?;
            search.advance(output.candidates(model.num_candidates));
            if search.is_done() {
                return Ok(search.finish());
            }
            // Every later step has one row per beam.
            let mut input_ids = search.last_tokens();
            let mut parents = search.parents(width);
            let mut beam_scores = search.scores();
            let mut banned_ids = search.banned(banned);
            if input_ids.len() < MIN_ROWS {
                input_ids.extend_from_within(..);
                parents.extend_from_within(..);
                beam_scores.extend_from_within(..);
                banned_ids.extend_from_within(..);
            }
            let prefix = empty::<f32>(&[input_ids.len(), 0, model.hidden_size])?;
            let past = output.present;
            step = Step { prefix, past, input_ids, parents, beam_scores, banned_ids };
            width = settings.num_beams;
        }
    }

    /// Runs one decoder step with `beams` rows per image.
    fn run_step(
        &mut self,
        step: Step,
        beams: usize,
        banned: usize,
        candidates: usize,
    ) -> Result<StepOutput> {
        let rows = step.input_ids.len();
        let images = rows / beams;
        let bind = |binding: &mut IoBinding| -> ort::Result<()> {
            let input_ids = Tensor::from_array(([rows, 1], step.input_ids))?;
            let parents = Tensor::from_array(([rows], step.parents))?;
            let beam_scores = Tensor::from_array(([images, beams], step.beam_scores))?;
            let banned_ids = Tensor::from_array(([rows, banned], step.banned_ids))?;
            binding.clear();
            binding.bind_input("prefix", &step.prefix)?;
            binding.bind_input("past", &step.past)?;
            binding.bind_input("input_ids", &input_ids)?;
            binding.bind_input("parents", &parents)?;
            binding.bind_input("beam_scores", &beam_scores)?;
            binding.bind_input("banned_ids", &banned_ids)?;
            binding.bind_output_to_device("present", &self.device)?;
            for name in ["scores", "tokens", "candidate_parents"] {
                binding.bind_output_to_device(name, &self.host)?;
            }
            Ok(())
        };
        bind(&mut self.binding).map_err(runtime_error)?;
        let mut outputs = self.session.run_binding(&self.binding).map_err(runtime_error)?;
        Ok(StepOutput {
            scores: read_output(&mut outputs, "scores", images * candidates)?,
            tokens: read_output(&mut outputs, "tokens", images * candidates)?,
            parents: read_output(&mut outputs, "candidate_parents", images * candidates)?,
            present: take_output(&mut outputs, "present")?,
        })
    }
}

/// The inputs of one decoder step.
struct Step {
    prefix: DynValue,
    past: DynValue,
    input_ids: Vec<i64>,
    parents: Vec<i64>,
    beam_scores: Vec<f32>,
    banned_ids: Vec<i64>,
}

/// The outputs of one decoder step, row-major `[images, candidates]`, and the key-value cache.
struct StepOutput {
    scores: Vec<f32>,
    tokens: Vec<i64>,
    parents: Vec<i64>,
    present: DynValue,
}

impl StepOutput {
    /// The candidates of each image.
    fn candidates(&self, candidates: usize) -> impl Iterator<Item = Candidates<'_>> {
        let scores = self.scores.chunks_exact(candidates);
        let tokens = self.tokens.chunks_exact(candidates);
        let parents = self.parents.chunks_exact(candidates);
        scores.zip(tokens).zip(parents).map(|((scores, tokens), parents)| Candidates {
            scores,
            tokens,
            parents,
        })
    }
}

/// The first step bans the end token too: a caption has at least one token.
fn first_banned_ids(bundle: &Bundle, rows: usize, count: usize) -> Vec<i64> {
    let model = &bundle.config;
    let mut row = vec![model.pad_token_id; count];
    for (slot, id) in row.iter_mut().zip([model.bos_token_id, model.eos_token_id]) {
        *slot = id;
    }
    row.repeat(rows)
}

fn empty<T: PrimitiveTensorElementType + Debug + Clone + 'static>(
    shape: &[usize],
) -> Result<DynValue> {
    let tensor = Tensor::from_array((shape.to_vec(), Vec::<T>::new())).map_err(runtime_error)?;
    Ok(tensor.into_dyn())
}

/// The memory of `provider`.
fn cache_memory(provider: Provider, device_id: i32) -> Result<MemoryInfo<'static>> {
    if provider == Provider::Cpu {
        return cpu();
    }
    MemoryInfo::new(AllocationDevice::CUDA, device_id, AllocatorType::Device, MemoryType::Default)
        .map_err(runtime_error)
}

fn cpu() -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)
        .map_err(runtime_error)
}
