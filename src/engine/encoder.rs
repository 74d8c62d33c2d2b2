//! Pixels to what the decoder starts from: the vision tower and the prefix of a bundle.
//!
//! It runs at a few fixed batch sizes. A batch takes the smallest that holds it and is padded with
//! blank images, whose rows are dropped before the decoder.

use ort::session::{Session, SessionOutputs};
use ort::value::{DynValue, Tensor, TensorRef};

use super::session::{LEAST_ROWS, failed, read, take};
use super::{Pixels, Seen, wrong_size};
use crate::bundle::{Bundle, PREFIX, VISION};
use crate::config::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;

/// The prefix's output that says where its local queries looked.
const ATTENTION: &str = "local_attention";

/// The first half of an engine. One owner runs it; it is `Send`.
pub struct Encoder {
    vision: Session,
    prefix: Session,
    /// Which of the vision tower's outputs the prefix is made from.
    prefix_inputs: Vec<String>,
    keep_attention: bool,
    preprocessor: Preprocessor,
    embedding_dim: usize,
    num_patches: usize,
    /// Ascending; the last is the batch size.
    sizes: Vec<usize>,
    /// For callers that have images and no [`Pixels`]; none while it is lent out.
    pixels: Option<Pixels>,
}

/// A batch's prefix for the decoder and the embeddings it came from.
pub struct Encoded {
    pub images: usize,
    /// Row-major `[rows, prefix_length, hidden_size]`: of the images, and of one that is blank
    /// where there would be one row alone in a batch that may be larger.
    pub prefix: Vec<f32>,
    /// As many as `prefix` has.
    pub rows: usize,
    /// Unit length, row-major `[images, embedding_dim]`.
    pub embeddings: Vec<f32>,
    /// Row-major `[images, prefix_length, num_patches]`, or empty.
    pub attention: Vec<f32>,
}

impl Encoder {
    /// Loads the two graphs, to run at `sizes`, ascending and not empty.
    pub fn load(bundle: &Bundle, runtime: &Runtime, sizes: Vec<usize>) -> Result<Self> {
        let open = |name| crate::runtime::session(runtime, &bundle.path(name));
        let (vision, prefix) = (open(VISION)?, open(PREFIX)?);
        let preprocessor = Preprocessor::new(bundle.preprocessor.clone())?;
        Ok(Self {
            prefix_inputs: prefix.inputs().iter().map(|input| input.name().to_owned()).collect(),
            vision,
            prefix,
            keep_attention: false,
            preprocessor,
            embedding_dim: bundle.config.embedding_dim,
            num_patches: bundle.config.num_patches,
            sizes,
            pixels: None,
        })
    }

    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Most images that one batch may have.
    pub fn batch_size(&self) -> usize {
        self.sizes.last().copied().unwrap_or(1)
    }

    /// Runs every batch size once, blank, so that no batch waits for what is set up once.
    pub fn warm_up(&mut self) -> Result<Encoded> {
        let (height, width) = self.preprocessor.input_size();
        let blank = vec![0; 3 * height * width];
        let smaller: Vec<usize> = self.sizes.split_last().map_or(vec![], |(_, rest)| rest.to_vec());
        for size in smaller {
            self.encode(&vec![blank.as_slice(); size])?;
        }
        self.encode(&vec![blank.as_slice(); self.batch_size()])
    }

    /// From now on [`Encoded::attention`] is filled, if the prefix has local queries.
    pub fn keep_attention(&mut self) {
        self.keep_attention = true;
    }

    /// Encodes 1 to `batch_size` images, each 8-bit RGB at the model's input size, in order.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for images of another number or size; `Runtime` if the model fails.
    pub fn encode(&mut self, images: &[&[u8]]) -> Result<Encoded> {
        let new = || Pixels::new(&self.preprocessor, self.sizes.last().copied().unwrap_or(1));
        let mut pixels = self.pixels.take().unwrap_or_else(new);
        pixels.clear();
        for image in images {
            pixels.push(&self.preprocessor, image)?;
        }
        let encoded = self.encode_pixels(&mut pixels);
        self.pixels = Some(pixels);
        encoded
    }

    /// Encodes the images in `pixels`, in order.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_pixels(&mut self, pixels: &mut Pixels) -> Result<Encoded> {
        let images = pixels.images();
        let size = self.size(images)?;
        let (height, width) = self.preprocessor.input_size();
        let batch = pixels.padded(size);
        let input =
            TensorRef::from_array_view(([size, 3, height, width], batch)).map_err(failed)?;
        let mut seen = self.vision.run(ort::inputs!["pixel_values" => input]).map_err(failed)?;
        let mut inputs = Vec::with_capacity(self.prefix_inputs.len());
        for name in &self.prefix_inputs {
            inputs.push((name.clone(), take(&mut seen, name)?));
        }
        drop(seen);
        self.map(inputs, images, size)
    }

    /// Encodes 1 to `batch_size` images of which a vision tower's outputs are there already.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_seen(&mut self, images: &[Seen]) -> Result<Encoded> {
        let (dim, patches) = (self.embedding_dim, self.num_patches);
        let size = self.size(images.len())?;
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

    /// The smallest batch size that holds `images`.
    fn size(&self, images: usize) -> Result<usize> {
        let size = self.sizes.iter().copied().find(|size| *size >= images);
        size.filter(|_| images > 0).ok_or_else(|| wrong_size(images, self.batch_size()))
    }

    /// Runs the prefix over `size` images, of which the first `images` are wanted.
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
        let rows = images.max(LEAST_ROWS).min(size);
        let prefix = first(&mut mapped, "prefix", rows, size)?;
        Ok(Encoded { images, prefix, rows, embeddings, attention })
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
