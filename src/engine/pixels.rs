//! The vision tower's input for one batch, written image by image as they are decoded.

use ort::value::Tensor;

use super::encoder::SLICE;
use super::wrong_size;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Preprocessor;

/// Up to `capacity` images as normalised planes, `[images, 3, height, width]`. Made once and used
/// again for batch after batch.
pub struct Pixels {
    /// Of `capacity` images and of those that pad the last slice.
    values: Values,
    capacity: usize,
    /// Values of one image.
    stride: usize,
    images: usize,
}

enum Values {
    Own(Vec<f32>),
    /// In memory that a device reads fast.
    Staged(Tensor<f32>),
}

impl Values {
    fn all(&self) -> &[f32] {
        match self {
            Self::Own(values) => values,
            Self::Staged(tensor) => tensor.extract_tensor().1,
        }
    }

    fn all_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Own(values) => values,
            Self::Staged(tensor) => tensor.extract_tensor_mut().1,
        }
    }
}

impl Pixels {
    pub fn new(preprocessor: &Preprocessor, capacity: usize) -> Self {
        let (height, width) = preprocessor.input_size();
        let stride = 3 * height * width;
        let places = capacity.next_multiple_of(SLICE);
        let values = Values::Own(vec![0.0; places * stride]);
        Self { values, capacity, stride, images: 0 }
    }

    /// In the memory of `staging`, `[capacity, 3, height, width]`.
    pub(super) fn staged(preprocessor: &Preprocessor, staging: Tensor<f32>) -> Self {
        let (height, width) = preprocessor.input_size();
        let stride = 3 * height * width;
        let mut values = Values::Staged(staging);
        let capacity = values.all().len() / stride.max(1);
        values.all_mut().fill(0.0);
        Self { values, capacity, stride, images: 0 }
    }

    /// What they are staged in.
    pub(super) fn staging(&self) -> Option<&Tensor<f32>> {
        match &self.values {
            Values::Own(_) => None,
            Values::Staged(tensor) => Some(tensor),
        }
    }

    pub fn images(&self) -> usize {
        self.images
    }

    pub fn clear(&mut self) {
        self.images = 0;
    }

    /// Normalises one image, 8-bit RGB at the model's input size, into the next place.
    ///
    /// # Errors
    /// `ErrorKind::Internal` for an image of another size, or one too many.
    pub fn push(&mut self, preprocessor: &Preprocessor, rgb: &[u8]) -> Result<()> {
        if rgb.len() != self.stride {
            return Err(Error::new(ErrorKind::Internal, "an image of the wrong size")
                .with("bytes", rgb.len())
                .with("expected", self.stride));
        }
        let mut places = self.values.all_mut().chunks_exact_mut(self.stride).take(self.capacity);
        let place = places.nth(self.images);
        let place = place.ok_or_else(|| wrong_size(self.images + 1, self.capacity))?;
        preprocessor.normalise(rgb, place);
        self.images += 1;
        Ok(())
    }

    /// Keeps the images whose number `wanted` answers for, in their order.
    pub fn retain(&mut self, wanted: impl Fn(usize) -> bool) {
        let mut kept = 0;
        for image in 0..self.images {
            if wanted(image) {
                let from = image * self.stride;
                self.values.all_mut().copy_within(from..from + self.stride, kept * self.stride);
                kept += 1;
            }
        }
        self.images = kept;
    }

    /// Makes the places up to `end` that have no image blank.
    pub(super) fn pad(&mut self, end: usize) {
        let used = self.images * self.stride;
        self.values.all_mut()[used..(end * self.stride).max(used)].fill(0.0);
    }

    /// `size` places, `[size, 3, height, width]`.
    pub(super) fn places(&self, first: usize, size: usize) -> &[f32] {
        &self.values.all()[first * self.stride..(first + size) * self.stride]
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
    fn places_are_filled_kept_and_padded() {
        let preprocessor = preprocessor();
        let mut pixels = Pixels::new(&preprocessor, 3);
        for value in 1..=3 {
            pixels.push(&preprocessor, &[value; 3]).unwrap();
        }
        assert!(pixels.push(&preprocessor, &[4; 3]).is_err(), "there is no fourth place");
        assert!(pixels.push(&preprocessor, &[4; 6]).is_err(), "two pixels are no image");
        pixels.retain(|image| image != 1);
        assert_eq!(pixels.images(), 2);
        pixels.pad(3);
        assert_eq!(pixels.places(0, 3), [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]);
        pixels.clear();
        pixels.push(&preprocessor, &[7; 3]).unwrap();
        pixels.pad(4);
        assert_eq!(pixels.places(0, 2), [7.0, 7.0, 7.0, 0.0, 0.0, 0.0]);
        assert_eq!(pixels.places(1, 3), [0.0; 9], "there is room to pad a slice");
    }
}
