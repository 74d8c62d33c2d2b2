//! The two sessions that encode images: the bundle's vision tower and its prefix.

use ort::session::Session;
use ort::value::{DynValue, Tensor, TensorRef};

use super::bound_buffers::BoundBuffers;
use super::encoded::Encoded;
use super::micro_batch::MicroBatch;
use super::ort_values::{read_output, read_rows, runtime_error, take_output};
use super::pixels::Pixels;
use crate::bundle::{Bundle, PREFIX, VISION};
use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The prefix's output with the attention of its local queries.
const ATTENTION: &str = "local_attention";

/// A vision tower's outputs for one image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFeatures {
    /// `[embedding_dim]`
    pub image: Vec<f32>,
    /// `[num_patches, embedding_dim]`
    pub patches: Vec<f32>,
}

pub struct EncoderSessions {
    vision: Session,
    /// The execution provider of the vision tower.
    provider: Provider,
    /// Set by [`Self::bind`].
    buffers: Option<BoundBuffers>,
    prefix: Session,
    /// Names of the vision tower's outputs that the prefix takes.
    prefix_inputs: Vec<String>,
    keep_attention: bool,
    embedding_dim: usize,
    num_patches: usize,
}

impl EncoderSessions {
    /// # Errors
    /// `ErrorKind::Runtime` if a graph or its provider can't be used.
    pub fn load(bundle: &Bundle, runtime: &Runtime) -> Result<Self> {
        let (vision, provider) =
            crate::runtime::static_shape_session(runtime, &bundle.path(VISION))?;
        let prefix = crate::runtime::session(runtime, &bundle.path(PREFIX))?;
        Ok(Self {
            provider,
            buffers: None,
            prefix_inputs: prefix.inputs().iter().map(|input| input.name().to_owned()).collect(),
            vision,
            prefix,
            keep_attention: false,
            embedding_dim: bundle.config.embedding_dim,
            num_patches: bundle.config.num_patches,
        })
    }

    pub fn keep_attention(&mut self) {
        self.keep_attention = true;
    }

    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Binds the vision tower to buffers on the device: from now on every batch has `shape`,
    /// `[batch_size, 3, height, width]`.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is not enough memory.
    pub fn bind(&mut self, device_id: i32, shape: [usize; 4]) -> Result<()> {
        let outputs = self.vision.outputs().iter().map(|output| {
            let name = output.name().to_owned();
            let shape = self.feature_shape(&name, shape[0]);
            (name, shape)
        });
        let (outputs, device) = (outputs.collect(), (self.provider, device_id));
        self.buffers = Some(BoundBuffers::bind(&self.vision, device, shape, outputs)?);
        Ok(())
    }

    /// A new staging buffer for a batch; None before [`Self::bind`].
    pub fn allocate_staging(&self) -> Option<Result<Tensor<f32>>> {
        self.buffers.as_ref().map(|buffers| buffers.allocate_staging(&self.vision))
    }

    /// Encodes a micro-batch of `pixels`, whose images are `[3, height, width]`.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the model fails.
    pub fn encode(
        &mut self,
        pixels: &Pixels,
        MicroBatch { first, images, rows }: MicroBatch,
        (height, width): (usize, usize),
    ) -> Result<Encoded> {
        let mut features = match (&mut self.buffers, pixels.staging()) {
            (Some(buffers), Some(staging)) => buffers.run(&mut self.vision, staging)?,
            _ => {
                let view = ([rows, 3, height, width], pixels.rows(first, rows));
                let input = TensorRef::from_array_view(view).map_err(runtime_error)?;
                self.vision.run(ort::inputs!["pixel_values" => input]).map_err(runtime_error)?
            }
        };
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            inputs.push((name.clone(), take_output(&mut features, name)?));
        }
        drop(features);
        self.run_prefix(inputs, images, rows)
    }

    /// The shape of the vision tower's output `name` for `rows` images.
    fn feature_shape(&self, name: &str, rows: usize) -> Vec<usize> {
        match name {
            "patch_embeds" => vec![rows, self.num_patches, self.embedding_dim],
            _ => vec![rows, self.embedding_dim],
        }
    }

    /// Encodes images from their features, padded to `rows` rows.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for features of another size; `Runtime` if the model fails.
    pub fn encode_features(&mut self, images: &[ImageFeatures], rows: usize) -> Result<Encoded> {
        let (dim, patches) = (self.embedding_dim, self.num_patches);
        let fits = |features: &ImageFeatures| {
            features.image.len() == dim && features.patches.len() == patches * dim
        };
        if !images.iter().all(fits) {
            return Err(Error::new(ErrorKind::Internal, "image features have the wrong size"));
        }
        let padded = |part: fn(&ImageFeatures) -> &Vec<f32>, width: usize| {
            let mut values: Vec<f32> = images.iter().flat_map(part).copied().collect();
            // Not zeros: they can't be normalised to unit length.
            values.resize(rows * width, 1.0);
            values
        };
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            let values = match name.as_str() {
                "patch_embeds" => padded(|features| &features.patches, patches * dim),
                _ => padded(|features| &features.image, dim),
            };
            let tensor = Tensor::from_array((self.feature_shape(name, rows), values));
            inputs.push((name.clone(), tensor.map_err(runtime_error)?.into_dyn()));
        }
        self.run_prefix(inputs, images.len(), rows)
    }

    /// Runs the prefix on `rows` rows and keeps the first `images` of them.
    fn run_prefix(
        &mut self,
        inputs: Vec<(String, DynValue)>,
        images: usize,
        rows: usize,
    ) -> Result<Encoded> {
        let mut outputs = self.prefix.run(inputs).map_err(runtime_error)?;
        let mut embeddings: Vec<f32> =
            read_output(&mut outputs, "embedding", rows * self.embedding_dim)?;
        embeddings.truncate(images * self.embedding_dim);
        let attention = match self.keep_attention && outputs.contains_key(ATTENTION) {
            true => read_rows(&mut outputs, ATTENTION, images, rows)?,
            false => Vec::new(),
        };
        let prefix = read_rows(&mut outputs, "prefix", images, rows)?;
        Ok(Encoded { images, prefix, embeddings, attention })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::image::Preprocessor;

    const ROWS: usize = 3;

    /// Bound to buffers of the CPU here; a GPU takes the same calls.
    #[test]
    fn bound_buffers_change_no_encoding() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/random");
        let bundle = Bundle::open(&dir).unwrap();
        let preprocessor = Preprocessor::new(bundle.preprocessor.clone()).unwrap();
        let (height, width) = preprocessor.input_size();
        let runtime = Runtime { intra_threads: 1, ..Runtime::default() };
        let mut plain = EncoderSessions::load(&bundle, &runtime).unwrap();
        let mut bound = EncoderSessions::load(&bundle, &runtime).unwrap();
        assert!(bound.allocate_staging().is_none());
        bound.bind(0, [ROWS, 3, height, width]).unwrap();
        let mut owned = Pixels::new(&preprocessor, ROWS);
        let staging = bound.allocate_staging().unwrap().unwrap();
        let mut staged = Pixels::staged(&preprocessor, staging);
        let mut before = Vec::new();
        // Several batches: none may see what an earlier one left in the buffers.
        for images in [3, 1, 2] {
            for pixels in [&mut owned, &mut staged] {
                pixels.clear();
                for image in 0..images {
                    let value = |place: usize| (place * 7 + image * 40 + images * 11) as u8;
                    let rgb: Vec<u8> = (0..3 * height * width).map(value).collect();
                    pixels.push(&preprocessor, &rgb).unwrap();
                }
                pixels.pad(ROWS);
            }
            let micro_batch = MicroBatch { first: 0, images, rows: ROWS };
            let expected = plain.encode(&owned, micro_batch, (height, width)).unwrap();
            let found = bound.encode(&staged, micro_batch, (height, width)).unwrap();
            assert_eq!(found.embeddings, expected.embeddings);
            assert_eq!(found.prefix, expected.prefix);
            assert_ne!(found.prefix, before, "a batch was encoded as the one before it");
            before = found.prefix;
        }
    }
}
