//! One instance of a bundle's vision tower and prefix.

use ort::session::{Session, SessionOutputs};
use ort::value::{DynValue, Tensor, TensorRef};

use super::Seen;
use super::encoder::Encoded;
use super::session::{failed, read, take};
use crate::bundle::{Bundle, PREFIX, VISION};
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};

/// The prefix's output that says where its local queries looked.
const ATTENTION: &str = "local_attention";

pub struct Tower {
    vision: Session,
    prefix: Session,
    /// Which of the vision tower's outputs the prefix is made from.
    prefix_inputs: Vec<String>,
    keep_attention: bool,
    embedding_dim: usize,
    num_patches: usize,
}

impl Tower {
    pub fn load(bundle: &Bundle, runtime: &Runtime) -> Result<Self> {
        let open = |name| crate::runtime::session(runtime, &bundle.path(name));
        let (vision, prefix) = (open(VISION)?, open(PREFIX)?);
        Ok(Self {
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

    /// Encodes the first `images` of `pixels`, `[size, 3, height, width]`.
    pub fn look(&mut self, pixels: &[f32], shape: [usize; 4], images: usize) -> Result<Encoded> {
        let input = TensorRef::from_array_view((shape, pixels)).map_err(failed)?;
        let mut seen = self.vision.run(ort::inputs!["pixel_values" => input]).map_err(failed)?;
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            inputs.push((name.clone(), take(&mut seen, name)?));
        }
        drop(seen);
        self.map(inputs, images, shape[0])
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
            let tensor = match name.as_str() {
                "patch_embeds" => {
                    let parts = padded(|seen| &seen.patches, patches * dim);
                    Tensor::from_array(([size, patches, dim].to_vec(), parts))
                }
                _ => Tensor::from_array(([size, dim].to_vec(), padded(|seen| &seen.image, dim))),
            };
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
