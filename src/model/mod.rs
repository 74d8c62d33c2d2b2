//! FusionCap in burn, for training: reconstructs a caption from its embedding.
//!
//! FusionCap (Li Bingnan and Ding Meng 2025) trains on text alone. Training embeds a caption with
//! the encoder's frozen text tower, and the decoder reconstructs the caption; inference uses an
//! image embedding instead. Three modules bridge the modality gap: [`noise`] adds noise as wide as
//! the gap to the text embedding, [`projection`] replaces an embedding of either modality by a
//! mixture of caption embeddings and maps it to prefix tokens, [`local`] adds local features.
//! [`decoder`] is the language model. Noise alone is CapDec, projection alone is DeCap, all three
//! together are FusionCap.
//!
//! Independent of corpora, files and ONNX, which `train` handles.

pub mod decoder;
pub mod local;
pub mod noise;
pub mod projection;
mod shape;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

use decoder::Decoder;
use local::{LocalFeatures, LocalModule, LocalSettings};
use noise::{Draws, NoiseNetwork, NoiseSettings};
use projection::{PrefixNetwork, ProjectionSettings, l2_normalize, project};
pub use shape::Shape;

/// The architecture of a model.
#[derive(Clone, Copy, Debug)]
pub struct ModelSpec<'a> {
    pub shape: &'a Shape,
    pub noise: &'a NoiseSettings,
    pub projection: &'a ProjectionSettings,
    pub local: &'a LocalSettings,
    /// Width of the joint embedding space.
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

/// Unit-length embeddings of the corpus's captions and nouns; not trained.
#[derive(Clone, Debug)]
pub struct Banks {
    /// `[captions, dim]`
    pub memory: Tensor<2>,
    /// `[nouns, dim]`
    pub nouns: Option<Tensor<2>>,
}

/// The inputs that condition the captions of a batch.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Unit length, `[batch, dim]`.
    pub embeddings: Tensor<2>,
    pub draws: Draws,
    pub local_features: Option<LocalFeatures>,
}

/// The outputs for a batch.
pub struct Output {
    /// Logits of the next tokens, `[batch, tokens, vocab]`.
    pub logits: Tensor<3>,
    /// KL divergence of learned noise, see [`noise::Noised`].
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

    /// Predicts the tokens after each of `tokens` `[batch, tokens]`, given `conditions`.
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
    /// modality, projected onto `memory` if given.
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
