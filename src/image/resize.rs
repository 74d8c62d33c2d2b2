//! Resizing as Pillow does it (a convolution whose support grows with the scale, so that
//! shrinking does not alias), by SIMD, and the centre crop.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use image::imageops;

use crate::bundle::Size;
use crate::error::{Error, ErrorKind, Result};

/// A resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Lanczos,
    Bilinear,
    Bicubic,
}

impl Filter {
    /// By Pillow's number, which `preprocessor_config.json` uses.
    pub fn from_pillow(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            _ => None,
        }
    }

    fn kernel(self) -> FilterType {
        match self {
            Self::Lanczos => FilterType::Lanczos3,
            Self::Bilinear => FilterType::Bilinear,
            // Pillow's bicubic has a = -0.5: Catmull and Rom's.
            Self::Bicubic => FilterType::CatmullRom,
        }
    }
}

/// `source` at `size`.
pub fn resize(source: RgbImage, size: Size, filter: Filter) -> Result<RgbImage> {
    let (width, height) = target(source.dimensions(), size);
    if source.dimensions() == (width, height) {
        return Ok(source);
    }
    let failed = |error: String| {
        Error::new(ErrorKind::CorruptImage, "the image can't be resized")
            .with("size", format!("{} x {}", source.width(), source.height()))
            .because(error)
    };
    let view = ImageRef::new(source.width(), source.height(), source.as_raw(), PixelType::U8x3)
        .map_err(|error| failed(error.to_string()))?;
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter.kernel()));
    Resizer::new()
        .resize(&view, &mut resized, &options)
        .map_err(|error| failed(error.to_string()))?;
    RgbImage::from_raw(width, height, resized.into_vec())
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a resized buffer has the wrong size"))
}

/// Width and height after resizing; the longer edge is rounded down, as Hugging Face's
/// `get_resize_output_image_size` does.
fn target((width, height): (u32, u32), size: Size) -> (u32, u32) {
    let shortest = match size {
        Size::Exact { height, width } => return (width, height),
        Size::Square(edge) | Size::ShortestEdge { shortest_edge: edge } => edge,
    };
    let scaled = |long: u32, short: u32| {
        let length = u64::from(shortest) * u64::from(long) / u64::from(short.max(1));
        u32::try_from(length).unwrap_or(u32::MAX)
    };
    if width <= height {
        (shortest, scaled(height, width))
    } else {
        (scaled(width, height), shortest)
    }
}

/// The middle `width x height` of `source`; what it lacks is black.
pub fn centre_crop(source: RgbImage, width: u32, height: u32) -> RgbImage {
    if source.dimensions() == (width, height) {
        return source;
    }
    if source.width() >= width && source.height() >= height {
        let (left, top) = ((source.width() - width) / 2, (source.height() - height) / 2);
        return imageops::crop_imm(&source, left, top, width, height).to_image();
    }
    let mut canvas = RgbImage::new(width, height);
    let offset = |outer: u32, inner: u32| (i64::from(outer) - i64::from(inner)).div_euclid(2);
    let (left, top) = (offset(width, source.width()), offset(height, source.height()));
    imageops::replace(&mut canvas, &source, left, top);
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_edge_is_rounded_down() {
        let size = Size::ShortestEdge { shortest_edge: 224 };
        assert_eq!(target((451, 300), size), (336, 224));
        assert_eq!(target((300, 451), size), (224, 336));
        assert_eq!(target((10, 10), Size::Exact { height: 3, width: 5 }), (5, 3));
    }

    #[test]
    fn a_crop_larger_than_the_image_is_padded() {
        let white = RgbImage::from_pixel(2, 2, image::Rgb([255; 3]));
        let cropped = centre_crop(white, 4, 4);
        assert_eq!(cropped.get_pixel(0, 0).0, [0; 3]);
        assert_eq!(cropped.get_pixel(1, 1).0, [255; 3]);
    }
}
