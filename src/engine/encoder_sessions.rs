//! One instance of a bundle's vision tower and prefix.

use ort::session::{Session, SessionOutputs};
use ort::value::{DynValue, Tensor, TensorRef};

use super::bound_buffers::Fixed;
use super::decoder_session::{failed, read, take};
use super::encoded::{Encoded, Slice};
use super::{Pixels, Seen};
use crate::bundle::{Bundle, PREFIX, VISION};
use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind, Result};

/// The prefix's output that says where its local queries looked.
const ATTENTION: &str = "local_attention";

pub struct Tower {
    vision: Session,
    /// What the vision tower runs on.
    provider: Provider,
    fixed: Option<Fixed>,
    prefix: Session,
    /// Which of the vision tower's outputs the prefix is made from.
    prefix_inputs: Vec<String>,
    keep_attention: bool,
    embedding_dim: usize,
    num_patches: usize,
}

impl Tower {
    pub fn load(bundle: &Bundle, runtime: &Runtime) -> Result<Self> {
        let (vision, provider) = crate::runtime::fixed_session(runtime, &bundle.path(VISION))?;
        let prefix = crate::runtime::session(runtime, &bundle.path(PREFIX))?;
        Ok(Self {
            provider,
            fixed: None,
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

    /// From now on every batch is of `shape`, `[size, 3, height, width]`, and lies in device memory
    /// that is taken once; to be called again for another shape.
    pub fn fix(&mut self, device_id: i32, shape: [usize; 4]) -> Result<()> {
        let outputs = self.vision.outputs().iter().map(|output| {
            let name = output.name().to_owned();
            let shape = self.shape_of(&name, shape[0]);
            (name, shape)
        });
        let (outputs, place) = (outputs.collect(), (self.provider, device_id));
        self.fixed = Some(Fixed::new(&self.vision, place, shape, outputs)?);
        Ok(())
    }

    /// Memory to stage a batch in; none unless its shape is fixed.
    pub fn staging(&self) -> Option<Result<Tensor<f32>>> {
        self.fixed.as_ref().map(|fixed| fixed.staging(&self.vision))
    }

    /// Encodes a slice of `pixels`, of images `[3, height, width]`.
    pub fn look(
        &mut self,
        pixels: &Pixels,
        Slice { first, images, size }: Slice,
        (height, width): (usize, usize),
    ) -> Result<Encoded> {
        let mut seen = match (&mut self.fixed, pixels.staging()) {
            (Some(fixed), Some(staging)) => fixed.run(&mut self.vision, staging)?,
            _ => {
                let view = ([size, 3, height, width], pixels.places(first, size));
                let input = TensorRef::from_array_view(view).map_err(failed)?;
                self.vision.run(ort::inputs!["pixel_values" => input]).map_err(failed)?
            }
        };
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            inputs.push((name.clone(), take(&mut seen, name)?));
        }
        drop(seen);
        self.map(inputs, images, size)
    }

    /// An embedding's shape for `size` images.
    fn shape_of(&self, name: &str, size: usize) -> Vec<usize> {
        match name {
            "patch_embeds" => vec![size, self.num_patches, self.embedding_dim],
            _ => vec![size, self.embedding_dim],
        }
    }

    /// Encodes images of which a vision tower's outputs are there already, in `size` rows.
    pub fn recall(&mut self, images: &[Seen], size: usize) -> Result<Encoded> {
        let (dim, patches) = (self.embedding_dim, self.num_patches);
        let fits = |seen: &Seen| seen.image.len() == dim && seen.patches.len() == patches * dim;
        if !images.iter().all(fits) {
            return Err(Error::new(ErrorKind::Internal, "embeddings of the wrong size"));
        }
        let padded = |part: fn(&Seen) -> &Vec<f32>, width: usize| {
            let mut rows: Vec<f32> = images.iter().flat_map(part).copied().collect();
            // Not zeros, which have no direction.
            rows.resize(size * width, 1.0);
            rows
        };
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            let values = match name.as_str() {
                "patch_embeds" => padded(|seen| &seen.patches, patches * dim),
                _ => padded(|seen| &seen.image, dim),
            };
            let tensor = Tensor::from_array((self.shape_of(name, size), values));
            inputs.push((name.clone(), tensor.map_err(failed)?.into_dyn()));
        }
        self.map(inputs, images.len(), size)
    }

    /// Runs the prefix over `size` rows, of which the first `images` are wanted.
    fn map(
        &mut self,
        inputs: Vec<(String, DynValue)>,
        images: usize,
        size: usize,
    ) -> Result<Encoded> {
        let mut mapped = self.prefix.run(inputs).map_err(failed)?;
        let mut embeddings: Vec<f32> = read(&mut mapped, "embedding", size * self.embedding_dim)?;
        embeddings.truncate(images * self.embedding_dim);
        let attention = match self.keep_attention && mapped.contains_key(ATTENTION) {
            true => first(&mut mapped, ATTENTION, images, size)?,
            false => Vec::new(),
        };
        Ok(Encoded {
            images,
            prefix: first(&mut mapped, "prefix", images, size)?,
            embeddings,
            attention,
        })
    }
}

/// The first `wanted` of an output's `size` rows.
fn first(
    outputs: &mut SessionOutputs<'_>,
    name: &str,
    wanted: usize,
    size: usize,
) -> Result<Vec<f32>> {
    let value = take(outputs, name)?;
    let (_, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
    Ok(data[..data.len() / size * wanted].to_vec())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::image::Preprocessor;

    const SIZE: usize = 3;

    /// What is fixed on a device is tried on the CPU, whose memory takes the same calls.
    #[test]
    fn a_batch_at_fixed_addresses_is_encoded_as_any_other() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/random");
        let bundle = Bundle::open(&dir).unwrap();
        let preprocessor = Preprocessor::new(bundle.preprocessor.clone()).unwrap();
        let (height, width) = preprocessor.input_size();
        let runtime = Runtime { intra_threads: 1, ..Runtime::default() };
        let mut tower = Tower::load(&bundle, &runtime).unwrap();
        let mut fixed = Tower::load(&bundle, &runtime).unwrap();
        assert!(fixed.staging().is_none());
        fixed.fix(0, [SIZE, 3, height, width]).unwrap();
        let mut own = Pixels::new(&preprocessor, SIZE);
        let staging = fixed.staging().unwrap().unwrap();
        let mut staged = Pixels::staged(&preprocessor, staging);
        let mut before = Vec::new();
        // Batch after batch, so that none sees what an earlier one left.
        for images in [3, 1, 2] {
            for pixels in [&mut own, &mut staged] {
                pixels.clear();
                for image in 0..images {
                    let value = |place: usize| (place * 7 + image * 40 + images * 11) as u8;
                    let rgb: Vec<u8> = (0..3 * height * width).map(value).collect();
                    pixels.push(&preprocessor, &rgb).unwrap();
                }
                pixels.pad(SIZE);
            }
            let slice = Slice { first: 0, images, size: SIZE };
            let expected = tower.look(&own, slice, (height, width)).unwrap();
            let found = fixed.look(&staged, slice, (height, width)).unwrap();
            assert_eq!(found.embeddings, expected.embeddings);
            assert_eq!(found.prefix, expected.prefix);
            assert_ne!(found.prefix, before, "a batch was encoded as the one before it");
            before = found.prefix;
        }
    }
}
