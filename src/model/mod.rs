//! FusionCap as trained, in burn: what turns a caption's embedding back into the caption.
//!
//! FusionCap (Li Bingnan and Ding Meng 2025) learns from text alone. Training embeds a caption
//! with the encoder's frozen text tower and asks the decoder for the caption; inference puts an
//! image's embedding in the same place. What makes the exchange possible stands in one file each:
//! [`noise`] blurs the text embedding by the width of the gap between the modalities,
//! [`projection`] rewrites either embedding as a mixture of remembered captions and maps it to
//! prefix tokens, [`local`] adds what single things show, [`decoder`] is the language model that
//! reads the prefix. Each of the first three is a switch: noise alone is CapDec, projection alone
//! is DeCap, all three are FusionCap.
//!
//! Knows nothing of corpora, files or ONNX: `train` feeds it and writes it out.

pub mod decoder;
pub mod local;
pub mod noise;
pub mod projection;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use decoder::Decoder;
use local::{LocalFeatures, LocalModule, LocalSettings};
use noise::{Draws, NoiseNetwork, NoiseSettings};
use projection::{PrefixNetwork, ProjectionSettings, l2_normalize, project};

/// Sizes of a FusionCap.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the decoder.
    pub hidden_size: usize,
    /// Width inside its feed-forward layers.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Prefix tokens the decoder reads before the caption.
    pub prefix_length: usize,
    /// Longest caption in tokens, begin and end included.
    pub max_length: usize,
}

/// What a FusionCap is made of.
#[derive(Clone, Copy, Debug)]
pub struct ModelSpec<'a> {
    pub shape: &'a Shape,
    pub noise: &'a NoiseSettings,
    pub projection: &'a ProjectionSettings,
    pub local: &'a LocalSettings,
    /// Width of the joint space.
    pub embedding_dim: usize,
    pub vocab_size: usize,
}

/// The trainable parts.
#[derive(Module, Debug)]
pub struct FusionCap {
    pub noise: Option<NoiseNetwork>,
    pub prefix: PrefixNetwork,
    pub local: Option<LocalModule>,
    pub decoder: Decoder,
}

/// What captions and nouns of the corpus look like in the joint space; unit length, not trained.
#[derive(Clone, Debug)]
pub struct Banks {
    /// `[captions, dim]`
    pub memory: Tensor<2>,
    /// `[nouns, dim]`
    pub nouns: Option<Tensor<2>>,
}

/// What the captions of a batch are conditioned on.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Unit length, `[batch, dim]`.
    pub embeddings: Tensor<2>,
    pub draws: Draws,
    pub local_features: Option<LocalFeatures>,
}

/// What the model says of a batch.
pub struct Output {
    /// Of each next token, `[batch, tokens, vocab]`.
    pub logits: Tensor<3>,
    /// What learned noise costs: see [`noise::Noised`].
    pub divergence: Option<Tensor<1>>,
}

impl FusionCap {
    pub fn new(spec: &ModelSpec<'_>, device: &Device) -> Self {
        let dim = spec.embedding_dim;
        let learned = spec.noise.kind == noise::NoiseKind::Learned;
        let inputs = if spec.projection.enabled && spec.projection.keep_embedding { 2 } else { 1 };
        Self {
            noise: learned.then(|| NoiseNetwork::new(spec.noise, dim, device)),
            prefix: PrefixNetwork::new(spec.shape, dim, inputs, device),
            local: spec.local.enabled.then(|| LocalModule::new(spec.shape, dim, device)),
            decoder: Decoder::new(spec.shape, spec.vocab_size, device),
        }
    }

    /// Reads `tokens` `[batch, tokens]` of captions of which `conditions` tell.
    pub fn forward(
        &self,
        spec: &ModelSpec<'_>,
        banks: &Banks,
        conditions: Conditions,
        tokens: Tensor<2, Int>,
    ) -> Output {
        let Conditions { embeddings, draws, local_features } = conditions;
        let noised =
            noise::apply(spec.noise, self.noise.as_ref(), embeddings, &draws, banks.nouns.as_ref());
        let temperature = spec.projection.temperature;
        let memory = spec.projection.in_training.then_some(&banks.memory);
        let prefix =
            self.encode_prefix(spec, memory, noised.embeddings, local_features, temperature);
        Output { logits: self.decoder.forward(prefix, tokens), divergence: noised.divergence }
    }

    /// The prefix `[batch, prefix_length, hidden]` for `embeddings` `[batch, dim]` of either
    /// modality, projected onto `memory` if there is one.
    pub fn encode_prefix(
        &self,
        spec: &ModelSpec<'_>,
        memory: Option<&Tensor<2>>,
        embeddings: Tensor<2>,
        local_features: Option<LocalFeatures>,
        temperature: f32,
    ) -> Tensor<3> {
        let projection = spec.projection;
        let mut inputs = Vec::with_capacity(2);
        if projection.enabled {
            inputs.push(match memory {
                Some(memory) => project(embeddings.clone(), memory, temperature),
                None => l2_normalize(embeddings.clone()),
            });
        }
        if !projection.enabled || projection.keep_embedding {
            inputs.push(l2_normalize(embeddings));
        }
        let prefix = self.prefix.forward(inputs);
        match (&self.local, local_features) {
            (Some(local), Some(local_features)) => local.fuse(prefix, &local_features),
            _ => prefix,
        }
    }
}
