//! Pixels to what the decoder starts from: the vision tower and the prefix of a bundle.
//!
//! It runs at a few fixed sizes, padded with blank images whose rows are dropped before the
//! decoder. An accelerator takes a batch whole, at fixed addresses (`fixed`). On the CPU a batch is
//! cut into slices, which take less time than all of it at once, and its instances take one slice
//! after another.

use super::decoder_session::LEAST_ROWS;
use super::encoded::{Encoded, Slice};
use super::encoder_sessions::Tower;
use super::session_pool::Threads;
use super::{Pixels, Seen, capture_lock, wrong_size};
use crate::bundle::Bundle;
use crate::config::{Provider, Runtime};
use crate::error::Result;
use crate::image::Preprocessor;

/// Images that one instance on the CPU encodes at once.
pub const SLICE: usize = 4;

/// The first half of an engine. One owner runs it; it is `Send`.
pub struct Encoder {
    threads: Threads,
    /// One for each thread.
    towers: Vec<Tower>,
    preprocessor: Preprocessor,
    batch_size: usize,
    /// Images that a tower may be given at once, ascending.
    sizes: Vec<usize>,
    /// Whether the first batch is recorded as a CUDA graph.
    records: bool,
    /// For callers that have images and no [`Pixels`]; none while it is lent out.
    pixels: Option<Pixels>,
}

impl Encoder {
    /// Loads the two graphs for batches of up to `batch_size` images.
    pub fn load(
        bundle: &Bundle,
        runtime: &Runtime,
        threads: Threads,
        batch_size: usize,
    ) -> Result<Self> {
        let batch_size = batch_size.max(1);
        let records = runtime.cuda_graphs && runtime.providers.first() == Some(&Provider::Cuda);
        // ONNX Runtime keeps a graph for each thread that runs it.
        let threads = if records { Threads::one_apart()? } else { threads };
        let preprocessor = Preprocessor::new(bundle.preprocessor.clone())?;
        let (height, width) = preprocessor.input_size();
        let load = || {
            let mut tower = Tower::load(bundle, runtime)?;
            if tower.provider() != Provider::Cpu {
                tower.fix(runtime.device_id, [batch_size, 3, height, width])?;
            }
            Ok(tower)
        };
        Ok(Self {
            towers: threads.instances(load)?,
            threads,
            preprocessor,
            batch_size,
            sizes: sizes(runtime, batch_size),
            records,
            pixels: None,
        })
    }

    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Most images that one batch may have.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Runs every tower once at every size, blank, so that no batch waits for what is set up once;
    /// a blank batch's encoding.
    pub fn warm_up(&mut self) -> Result<Encoded> {
        let (height, width) = self.preprocessor.input_size();
        let pixels = self.pixels()?;
        let sizes = &self.sizes;
        let look_at_all = |tower: &mut Tower| {
            sizes.iter().try_for_each(|size| {
                let slice = Slice { first: 0, images: *size, size: *size };
                tower.look(&pixels, slice, (height, width)).map(drop)
            })
        };
        let alone = self.records.then(capture_lock::alone);
        self.threads.each(&mut self.towers, look_at_all)?;
        drop(alone);
        self.pixels = Some(pixels);
        let blank = vec![0; 3 * height * width];
        self.encode(&vec![blank.as_slice(); self.batch_size])
    }

    /// Blank room for a batch, where the vision tower reads it best.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is too little memory of that kind.
    pub fn pixels(&self) -> Result<Pixels> {
        match self.towers.first().and_then(Tower::staging) {
            Some(staging) => Ok(Pixels::staged(&self.preprocessor, staging?)),
            None => Ok(Pixels::new(&self.preprocessor, self.batch_size)),
        }
    }

    /// From now on [`Encoded::attention`] is filled, if the prefix has local queries.
    pub fn keep_attention(&mut self) {
        self.towers.iter_mut().for_each(Tower::keep_attention);
    }

    /// Encodes 1 to `batch_size` images, each 8-bit RGB at the model's input size, in order.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for images of another number or size; `Runtime` if the model fails.
    pub fn encode(&mut self, images: &[&[u8]]) -> Result<Encoded> {
        let mut pixels = match self.pixels.take() {
            Some(pixels) => pixels,
            None => self.pixels()?,
        };
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
        let slices = self.slices(pixels.images())?;
        let image_size = self.preprocessor.input_size();
        let _running = capture_lock::beside_others();
        pixels.pad(slices.last().map_or(0, |slice| slice.first + slice.size));
        let look = |tower: &mut Tower, slice| tower.look(pixels, slice, image_size);
        let parts = self.threads.share(&mut self.towers, slices, look);
        Ok(Encoded::joined(parts?))
    }

    /// Encodes 1 to `batch_size` images of which a vision tower's outputs are there already.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_seen(&mut self, images: &[Seen]) -> Result<Encoded> {
        let slices = self.slices(images.len())?;
        let _running = capture_lock::beside_others();
        let recall = |tower: &mut Tower, Slice { first, images: count, size }| {
            tower.recall(&images[first..first + count], size)
        };
        let parts = self.threads.share(&mut self.towers, slices, recall);
        Ok(Encoded::joined(parts?))
    }

    /// A batch of `images` in slices: as many as keep all instances at work, none larger than the
    /// largest size.
    fn slices(&self, images: usize) -> Result<Vec<Slice>> {
        if images == 0 || images > self.batch_size {
            return Err(wrong_size(images, self.batch_size));
        }
        let largest = self.sizes.last().copied().unwrap_or(1);
        let length = images.div_ceil(self.threads.count()).max(LEAST_ROWS).min(largest);
        let slice = |first| {
            let images = length.min(images - first);
            let size = self.sizes.iter().copied().find(|size| *size >= images);
            Slice { first, images, size: size.unwrap_or(images) }
        };
        Ok((0..images).step_by(length).map(slice).collect())
    }
}

/// The sizes that a tower runs at. An accelerator picks its kernels by the size, and another one
/// may round differently: there, one size serves all.
fn sizes(runtime: &Runtime, batch_size: usize) -> Vec<usize> {
    if runtime.providers.first().is_some_and(|provider| *provider != Provider::Cpu) {
        return vec![batch_size];
    }
    let mut sizes = [LEAST_ROWS, SLICE].map(|size| size.min(batch_size)).to_vec();
    sizes.dedup();
    sizes
}
