//! The vision tower's input for one batch, filled image by image.

use ort::value::Tensor;

use super::micro_batch::{MAX_CPU_ROWS, batch_size_error};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;

/// Up to `capacity` images as normalised planes, `[images, 3, height, width]`. Allocated once and
/// reused for many batches.
pub struct Pixels {
    /// Row-major `[rows, 3, height, width]`: `capacity` rows, and padding for the last micro-batch.
    values: Values,
    capacity: usize,
    /// Values of one image.
    stride: usize,
    images: usize,
}

enum Values {
    Owned(Vec<f32>),
    /// In a staging buffer, which a device reads fast.
    Staged(Tensor<f32>),
}

impl Values {
    fn as_slice(&self) -> &[f32] {
        match self {
            Self::Owned(values) => values,
            Self::Staged(tensor) => tensor.extract_tensor().1,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        match self {
            Self::Owned(values) => values,
            Self::Staged(tensor) => tensor.extract_tensor_mut().1,
        }
    }
}

impl Pixels {
    pub fn new(preprocessor: &Preprocessor, capacity: usize) -> Self {
        let (height, width) = preprocessor.input_size();
        let stride = 3 * height * width;
        let rows = capacity.next_multiple_of(MAX_CPU_ROWS);
        let values = Values::Owned(vec![0.0; rows * stride]);
        Self { values, capacity, stride, images: 0 }
    }

    /// An empty batch in the staging buffer `staging`, `[capacity, 3, height, width]`.
    pub(super) fn staged(preprocessor: &Preprocessor, staging: Tensor<f32>) -> Self {
        let (height, width) = preprocessor.input_size();
        let stride = 3 * height * width;
        let mut values = Values::Staged(staging);
        let capacity = values.as_slice().len() / stride.max(1);
        values.as_mut_slice().fill(0.0);
        Self { values, capacity, stride, images: 0 }
    }

    /// The staging buffer, if the batch is in one.
    pub(super) fn staging(&self) -> Option<&Tensor<f32>> {
        match &self.values {
            Values::Owned(_) => None,
            Values::Staged(tensor) => Some(tensor),
        }
    }

    pub fn images(&self) -> usize {
        self.images
    }

    pub fn clear(&mut self) {
        self.images = 0;
    }

    /// Normalises one image, 8-bit RGB at the model's input size, into the next row.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for an image of another size, or if the batch is full.
    pub fn push(&mut self, preprocessor: &Preprocessor, rgb: &[u8]) -> Result<()> {
        if rgb.len() != self.stride {
            return Err(Error::new(ErrorKind::Internal, "an image has the wrong size")
                .with_context("bytes", rgb.len())
                .with_context("expected", self.stride));
        }
        let mut rows = self.values.as_mut_slice().chunks_exact_mut(self.stride).take(self.capacity);
        let row = rows.nth(self.images);
        let row = row.ok_or_else(|| batch_size_error(self.images + 1, self.capacity))?;
        preprocessor.normalise(rgb, row);
        self.images += 1;
        Ok(())
    }

    /// Keeps the images whose index passes `keep`, in their order.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut kept = 0;
        for image in 0..self.images {
            if keep(image) {
                let from = image * self.stride;
                self.values
                    .as_mut_slice()
                    .copy_within(from..from + self.stride, kept * self.stride);
                kept += 1;
            }
        }
        self.images = kept;
    }

    /// Fills the rows between the last image and `end` with zeros.
    pub(super) fn pad(&mut self, end: usize) {
        let used = self.images * self.stride;
        self.values.as_mut_slice()[used..(end * self.stride).max(used)].fill(0.0);
    }

    /// `count` rows from `first` on, `[count, 3, height, width]`.
    pub(super) fn rows(&self, first: usize, count: usize) -> &[f32] {
        &self.values.as_slice()[first * self.stride..(first + count) * self.stride]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{PreprocessorConfig, Size};

    fn preprocessor() -> Preprocessor {
        Preprocessor::new(PreprocessorConfig {
            do_resize: true,
            size: Size::Square(1),
            resample: 3,
            do_center_crop: false,
            crop_size: None,
            rescale_factor: 1.0,
            image_mean: [0.0; 3],
            image_std: [1.0; 3],
        })
        .unwrap()
    }

    #[test]
    fn rows_are_filled_kept_and_padded() {
        let preprocessor = preprocessor();
        let mut pixels = Pixels::new(&preprocessor, 3);
        for value in 1..=3 {
            pixels.push(&preprocessor, &[value; 3]).unwrap();
        }
        assert!(pixels.push(&preprocessor, &[4; 3]).is_err(), "there is no fourth row");
        assert!(pixels.push(&preprocessor, &[4; 6]).is_err(), "two pixels are not an image");
        pixels.retain(|image| image != 1);
        assert_eq!(pixels.images(), 2);
        pixels.pad(3);
        assert_eq!(pixels.rows(0, 3), [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]);
        pixels.clear();
        pixels.push(&preprocessor, &[7; 3]).unwrap();
        pixels.pad(4);
        assert_eq!(pixels.rows(0, 2), [7.0, 7.0, 7.0, 0.0, 0.0, 0.0]);
        assert_eq!(pixels.rows(1, 3), [0.0; 9], "a micro-batch can be padded");
    }
}
