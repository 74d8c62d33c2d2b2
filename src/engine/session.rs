//! The three graphs of a bundle in ONNX Runtime, run at one fixed batch size.
//!
//! The key-value cache never leaves the device: each decoder step's `present` is bound as the
//! next one's `past`. Only the few best candidates of each image come back to the host.

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session, SessionOutputs};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorRef};

use super::generate::{Candidates, Hypothesis, Search};
use crate::bundle::{Bundle, DECODER, GenerationConfig, PREFIX, VISION};
use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The prefix's output that says where its local queries looked.
const ATTENTION: &str = "local_attention";

pub struct Sessions {
    vision: Session,
    prefix: Session,
    /// Which of the vision tower's outputs the prefix is made from.
    prefix_inputs: Vec<String>,
    keep_attention: bool,
    decoder: Session,
    binding: IoBinding,
    /// Where the cache stays.
    device: MemoryInfo<'static>,
    host: MemoryInfo<'static>,
}

/// A batch's prefix for the decoder and the embeddings it came from.
pub struct Encoded {
    pub prefix: DynValue,
    /// Unit length, row-major `[batch, embedding_dim]`.
    pub embeddings: Vec<f32>,
    /// Row-major `[batch, prefix_length, num_patches]`, or empty.
    pub attention: Vec<f32>,
}

impl Sessions {
    pub fn load(bundle: &Bundle, runtime: &Runtime) -> Result<Self> {
        let open = |name| crate::runtime::session(runtime, &bundle.path(name));
        let (vision, prefix, decoder) = (open(VISION)?, open(PREFIX)?, open(DECODER)?);
        let prefix_inputs = prefix.inputs().iter().map(|input| input.name().to_owned()).collect();
        let binding = decoder.create_binding().map_err(failed)?;
        Ok(Self {
            vision,
            prefix,
            prefix_inputs,
            keep_attention: false,
            decoder,
            binding,
            device: cache_device(runtime)?,
            host: cpu()?,
        })
    }

    /// From now on [`Encoded::attention`] is filled, if the prefix has local queries.
    pub fn keep_attention(&mut self) {
        self.keep_attention = true;
    }

    /// Encodes `pixels`, row-major `[batch, 3, height, width]`, to embeddings of `dim` entries.
    pub fn encode(&mut self, pixels: &[f32], shape: [usize; 4], dim: usize) -> Result<Encoded> {
        let input = TensorRef::from_array_view((shape, pixels)).map_err(failed)?;
        let mut seen = self.vision.run(ort::inputs!["pixel_values" => input]).map_err(failed)?;
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            inputs.push((name.clone(), take(&mut seen, name)?));
        }
        drop(seen);
        self.map(inputs, shape[0] * dim)
    }

    /// As [`Self::encode`], from the vision tower's outputs: `images` `[batch, dim]` and `patches`
    /// `[batch, patches, dim]`.
    pub fn encode_seen(
        &mut self,
        images: &[f32],
        patches: &[f32],
        [batch, count, dim]: [usize; 3],
    ) -> Result<Encoded> {
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            let tensor = match name.as_str() {
                "patch_embeds" => Tensor::from_array(([batch, count, dim], patches.to_vec())),
                _ => Tensor::from_array(([batch, dim], images.to_vec())),
            };
            inputs.push((name.clone(), tensor.map_err(failed)?.into_dyn()));
        }
        self.map(inputs, batch * dim)
    }

    /// Runs the prefix; `entries` is how many numbers all embeddings have.
    fn map(&mut self, inputs: Vec<(String, DynValue)>, entries: usize) -> Result<Encoded> {
        let mut mapped = self.prefix.run(inputs).map_err(failed)?;
        let embeddings = read(&mut mapped, "embedding", entries)?;
        let attention = match mapped.remove(ATTENTION) {
            Some(value) if self.keep_attention => {
                value.try_extract_tensor::<f32>().map_err(failed)?.1.to_vec()
            }
            _ => Vec::new(),
        };
        Ok(Encoded { embeddings, attention, prefix: take(&mut mapped, "prefix")? })
    }

    /// Finds captions for the first `images` of the `batch` images that `prefix` came from.
    pub fn generate(
        &mut self,
        bundle: &Bundle,
        settings: &GenerationConfig,
        prefix: DynValue,
        images: usize,
        batch: usize,
    ) -> Result<Vec<Hypothesis>> {
        let model = &bundle.config;
        let head_size = model.hidden_size / model.num_attention_heads;
        let cache = [2 * model.num_hidden_layers, batch, model.num_attention_heads, 0, head_size];
        // The special tokens, and at most one for each token said.
        let banned = model.max_length + 2;
        let mut search = Search::new(model, settings, images);

        // The prefix and the begin token: one row an image.
        let mut step = Step {
            prefix,
            past: empty(&cache)?,
            input_ids: vec![model.bos_token_id; batch],
            parents: (0..batch as i64).collect(),
            beam_scores: vec![0.0; batch],
            banned_ids: start_bans(bundle, batch, banned),
        };
        let mut width = 1;
        loop {
            let found = self.run(step, [batch, width], banned, model.num_candidates)?;
            search.advance(found.by_image(model.num_candidates).take(images));
            if search.is_done() {
                return Ok(search.finish());
            }
            // From here on every beam is a row.
            let rows = batch * settings.num_beams;
            step = Step {
                prefix: empty(&[rows, 0, model.hidden_size])?,
                past: found.present,
                input_ids: search.last_tokens(rows),
                parents: search.parents(rows, width),
                beam_scores: search.scores(rows),
                banned_ids: search.banned(rows, banned),
            };
            width = settings.num_beams;
        }
    }

    /// One decoder step over `[images, beams]`.
    fn run(
        &mut self,
        step: Step,
        [images, beams]: [usize; 2],
        banned: usize,
        candidates: usize,
    ) -> Result<Found> {
        let rows = images * beams;
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
        let mut outputs = self.decoder.run_binding(&self.binding).map_err(failed)?;
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

fn empty(shape: &[usize]) -> Result<DynValue> {
    let tensor = Tensor::from_array((shape.to_vec(), Vec::<f32>::new())).map_err(failed)?;
    Ok(tensor.into_dyn())
}

fn take(outputs: &mut SessionOutputs<'_>, name: &str) -> Result<DynValue> {
    outputs.remove(name).ok_or_else(|| {
        Error::new(ErrorKind::Bundle, "a graph of the bundle lacks an output").with("output", name)
    })
}

/// An output's values, `count` of them if graph and configuration are of one mind.
fn read<T: PrimitiveTensorElementType + Copy>(
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

/// The memory of the provider that comes first.
fn cache_device(runtime: &Runtime) -> Result<MemoryInfo<'static>> {
    if runtime.providers.first().is_none_or(|provider| *provider == Provider::Cpu) {
        return cpu();
    }
    MemoryInfo::new(
        AllocationDevice::CUDA,
        runtime.device_id,
        AllocatorType::Device,
        MemoryType::Default,
    )
    .map_err(failed)
}

fn cpu() -> Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)
        .map_err(failed)
}

fn failed(error: ort::Error) -> Error {
    Error::new(ErrorKind::Runtime, "ONNX Runtime failed").because(error)
}
