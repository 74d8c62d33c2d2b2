//! The decoder graph of a bundle in ONNX Runtime, one beam search at a time.
//!
//! The key-value cache never leaves the device: each step's `present` is bound as the next one's
//! `past`. Only the few best candidates of each image come back to the host. Rows of images whose
//! captions are decided leave the batch: the next step's `parents` do not name them.

use std::fmt::Debug;

use half::f16;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session, SessionOutputs};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, Tensor, TensorElementType};

use super::beam_search::{Candidates, Hypothesis, Search};
use crate::bundle::{Bundle, DECODER, GenerationConfig};
use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// A matrix product with one row takes another kernel, which rounds otherwise: an image that is
/// alone has a companion.
pub const LEAST_ROWS: usize = 2;

pub struct Decoder {
    session: Session,
    binding: IoBinding,
    /// Where the cache stays.
    device: MemoryInfo<'static>,
    host: MemoryInfo<'static>,
    /// Whether the cache holds 16-bit floats, as an fp16 variant's does.
    half_cache: bool,
}

impl Decoder {
    pub fn load(bundle: &Bundle, runtime: &Runtime) -> Result<Self> {
        let path = bundle.path(DECODER);
        let (session, provider) = crate::runtime::session_and_provider(runtime, &path)?;
        let binding = session.create_binding().map_err(failed)?;
        let half = Some(TensorElementType::Float16);
        let is_half = |input: &Outlet| input.dtype().tensor_type() == half;
        let half_cache =
            session.inputs().iter().any(|input| input.name() == "past" && is_half(input));
        Ok(Self {
            half_cache,
            session,
            binding,
            device: cache_device(provider, runtime.device_id)?,
            host: cpu()?,
        })
    }

    /// Finds captions for the images that `prefix` has a row for,
    /// `[images, prefix_length, hidden_size]`.
    pub fn generate(
        &mut self,
        bundle: &Bundle,
        settings: &GenerationConfig,
        prefix: &[f32],
    ) -> Result<Vec<Hypothesis>> {
        let model = &bundle.config;
        let images = prefix.len() / (model.prefix_length * model.hidden_size).max(1);
        let rows = images.max(LEAST_ROWS);
        let mut prefix = prefix.to_vec();
        if images < rows {
            prefix.extend_from_within(..);
        }
        let head_size = model.hidden_size / model.num_attention_heads;
        let cache = [2 * model.num_hidden_layers, rows, model.num_attention_heads, 0, head_size];
        // The special tokens, and at most one for each token said.
        let banned = model.max_length + 2;
        let mut search = Search::new(model, settings, images);

        // The prefix and the begin token: one row an image.
        let prefix = Tensor::from_array(([rows, model.prefix_length, model.hidden_size], prefix));
        let mut step = Step {
            prefix: prefix.map_err(failed)?.into_dyn(),
            past: if self.half_cache { empty::<f16>(&cache)? } else { empty::<f32>(&cache)? },
            input_ids: vec![model.bos_token_id; rows],
            parents: (0..rows as i64).collect(),
            beam_scores: vec![0.0; rows],
            banned_ids: start_bans(bundle, rows, banned),
        };
        let mut width = 1;
        loop {
            let found = self.run(step, width, banned, model.num_candidates)?;
            search.advance(found.by_image(model.num_candidates));
            if search.is_done() {
                return Ok(search.finish());
            }
            // From here on every beam is a row.
            let mut input_ids = search.last_tokens();
            let mut parents = search.parents(width);
            let mut beam_scores = search.scores();
            let mut banned_ids = search.banned(banned);
            if input_ids.len() < LEAST_ROWS {
                input_ids.extend_from_within(..);
                parents.extend_from_within(..);
                beam_scores.extend_from_within(..);
                banned_ids.extend_from_within(..);
            }
            let prefix = empty::<f32>(&[input_ids.len(), 0, model.hidden_size])?;
            let past = found.present;
            step = Step { prefix, past, input_ids, parents, beam_scores, banned_ids };
            width = settings.num_beams;
        }
    }

    /// One decoder step with `beams` rows an image.
    fn run(&mut self, step: Step, beams: usize, banned: usize, candidates: usize) -> Result<Found> {
        let rows = step.input_ids.len();
        let images = rows / beams;
        let bind_all = |binding: &mut IoBinding| -> ort::Result<()> {
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
        bind_all(&mut self.binding).map_err(failed)?;
        let mut outputs = self.session.run_binding(&self.binding).map_err(failed)?;
        Ok(Found {
            scores: read(&mut outputs, "scores", images * candidates)?,
            tokens: read(&mut outputs, "tokens", images * candidates)?,
            parents: read(&mut outputs, "candidate_parents", images * candidates)?,
            present: take(&mut outputs, "present")?,
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

/// The outputs of one decoder step; row-major `[images, candidates]`.
struct Found {
    scores: Vec<f32>,
    tokens: Vec<i64>,
    parents: Vec<i64>,
    present: DynValue,
}

impl Found {
    fn by_image(&self, candidates: usize) -> impl Iterator<Item = Candidates<'_>> {
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

/// No caption begins with its end.
fn start_bans(bundle: &Bundle, rows: usize, count: usize) -> Vec<i64> {
    let model = &bundle.config;
    let mut row = vec![model.pad_token_id; count];
    for (place, id) in row.iter_mut().zip([model.bos_token_id, model.eos_token_id]) {
        *place = id;
    }
    row.repeat(rows)
}

fn empty<T: PrimitiveTensorElementType + Debug + Clone + 'static>(
    shape: &[usize],
) -> Result<DynValue> {
    let tensor = Tensor::from_array((shape.to_vec(), Vec::<T>::new())).map_err(failed)?;
    Ok(tensor.into_dyn())
}

pub fn take(outputs: &mut SessionOutputs<'_>, name: &str) -> Result<DynValue> {
    outputs.remove(name).ok_or_else(|| {
        Error::new(ErrorKind::Bundle, "a graph of the bundle lacks an output").with("output", name)
    })
}

/// An output's values, `count` of them if graph and configuration are of one mind.
pub fn read<T: PrimitiveTensorElementType + Copy>(
    outputs: &mut SessionOutputs<'_>,
    name: &str,
    count: usize,
) -> Result<Vec<T>> {
    let value = take(outputs, name)?;
    let (shape, data) = value.try_extract_tensor::<T>().map_err(failed)?;
    if data.len() == count {
        return Ok(data.to_vec());
    }
    Err(Error::new(ErrorKind::Bundle, "a graph of the bundle and config.json disagree")
        .with("output", name)
        .with("shape", format!("{shape:?}"))
        .with("expected values", count))
}

/// The provider's own memory.
fn cache_device(provider: Provider, device_id: i32) -> Result<MemoryInfo<'static>> {
    if provider == Provider::Cpu {
        return cpu();
    }
    MemoryInfo::new(AllocationDevice::CUDA, device_id, AllocatorType::Device, MemoryType::Default)
        .map_err(failed)
}

fn cpu() -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)
        .map_err(failed)
}

pub fn failed(error: ort::Error) -> Error {
    Error::new(ErrorKind::Runtime, "ONNX Runtime failed").because(error)
}
