//! The encoder: pixels to the decoder's prefix, by the bundle's vision tower and prefix graphs.
//!
//! An accelerator encodes a batch in one run on bound buffers. On the CPU a batch is cut into
//! micro-batches, which take less time than one large run, and several sessions share them. Padding
//! rows are dropped before the decoder.

use super::capture_lock;
use super::encoded::Encoded;
use super::encoder_sessions::{EncoderSessions, ImageFeatures};
use super::micro_batch::{self, MicroBatch, batch_size_error};
use super::pixels::Pixels;
use super::session_pool::{InferenceThreads, SessionPool};
use crate::bundle::Bundle;
use crate::config::{Provider, Runtime};
use crate::error::Result;
use crate::image::Preprocessor;

/// The first half of an engine. It is `Send` and has one owner.
pub struct Encoder {
    sessions: SessionPool<EncoderSessions>,
    preprocessor: Preprocessor,
    batch_size: usize,
    /// Row counts that the sessions run at, ascending.
    row_counts: Vec<usize>,
    /// Whether the first batch is captured as a CUDA graph.
    captures_graph: bool,
    /// For [`Self::encode`], which gets images and no [`Pixels`].
    pixels: Option<Pixels>,
}

impl Encoder {
    /// Loads the two graphs for batches of up to `batch_size` images.
    ///
    /// # Errors
    /// `ErrorKind::Bundle` or `Runtime` if they can't be loaded.
    pub fn load(
        bundle: &Bundle,
        runtime: &Runtime,
        threads: InferenceThreads,
        batch_size: usize,
    ) -> Result<Self> {
        let batch_size = batch_size.max(1);
        let captures_graph =
            runtime.cuda_graphs && runtime.providers.first() == Some(&Provider::Cuda);
        // ONNX Runtime keeps one graph per thread that runs the session.
        let threads = if captures_graph { InferenceThreads::dedicated()? } else { threads };
        let preprocessor = Preprocessor::new(bundle.preprocessor.clone())?;
        let (height, width) = preprocessor.input_size();
        let load = || {
            let mut sessions = EncoderSessions::load(bundle, runtime)?;
            if sessions.provider() != Provider::Cpu {
                sessions.bind(runtime.device_id, [batch_size, 3, height, width])?;
            }
            Ok(sessions)
        };
        Ok(Self {
            sessions: SessionPool::load(threads, load)?,
            preprocessor,
            batch_size,
            row_counts: micro_batch::row_counts(runtime, batch_size),
            captures_graph,
            pixels: None,
        })
    }

    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Most images of a batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Runs every session once at every row count on blank images, so that no later batch waits
    /// for one-time set-up. Returns the encoding of a blank batch.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn warm_up(&mut self) -> Result<Encoded> {
        let (height, width) = self.preprocessor.input_size();
        let pixels = self.allocate_pixels()?;
        let row_counts = &self.row_counts;
        let encode_blank = |sessions: &mut EncoderSessions| {
            row_counts.iter().try_for_each(|rows| {
                let micro_batch = MicroBatch { first: 0, images: *rows, rows: *rows };
                sessions.encode(&pixels, micro_batch, (height, width)).map(drop)
            })
        };
        let capturing = self.captures_graph.then(capture_lock::exclusive);
        self.sessions.for_each(encode_blank)?;
        drop(capturing);
        self.pixels = Some(pixels);
        let blank = vec![0; 3 * height * width];
        self.encode(&vec![blank.as_slice(); self.batch_size])
    }

    /// An empty batch, in memory that the vision tower reads fast.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is not enough such memory.
    pub fn allocate_pixels(&self) -> Result<Pixels> {
        match self.sessions.first().and_then(EncoderSessions::allocate_staging) {
            Some(staging) => Ok(Pixels::staged(&self.preprocessor, staging?)),
            None => Ok(Pixels::new(&self.preprocessor, self.batch_size)),
        }
    }

    /// From now on [`Encoded::attention`] is filled, if the prefix has local queries.
    pub fn keep_attention(&mut self) {
        self.sessions.iter_mut().for_each(EncoderSessions::keep_attention);
    }

    /// Encodes 1 to `batch_size` images in order, each 8-bit RGB at the model's input size.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for another number or size of images; `Runtime` if the model fails.
    pub fn encode(&mut self, images: &[&[u8]]) -> Result<Encoded> {
        let mut pixels = match self.pixels.take() {
            Some(pixels) => pixels,
            None => self.allocate_pixels()?,
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
        let micro_batches = self.micro_batches(pixels.images())?;
        let image_size = self.preprocessor.input_size();
        let _running = capture_lock::shared();
        pixels.pad(micro_batches.last().map_or(0, |last| last.first + last.rows));
        let encode = |sessions: &mut EncoderSessions, micro_batch| {
            sessions.encode(pixels, micro_batch, image_size)
        };
        Ok(Encoded::concat(self.sessions.map(micro_batches, encode)?))
    }

    /// Encodes 1 to `batch_size` images, in order, from a vision tower's outputs.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_features(&mut self, images: &[ImageFeatures]) -> Result<Encoded> {
        let micro_batches = self.micro_batches(images.len())?;
        let _running = capture_lock::shared();
        let encode = |sessions: &mut EncoderSessions, MicroBatch { first, images: count, rows }| {
            sessions.encode_features(&images[first..first + count], rows)
        };
        Ok(Encoded::concat(self.sessions.map(micro_batches, encode)?))
    }

    fn micro_batches(&self, images: usize) -> Result<Vec<MicroBatch>> {
        if images == 0 || images > self.batch_size {
            return Err(batch_size_error(images, self.batch_size));
        }
        Ok(micro_batch::cut(images, self.sessions.size(), &self.row_counts))
    }
}
