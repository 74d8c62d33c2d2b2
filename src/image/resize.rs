//! Resizing with SIMD as Pillow does it (a convolution whose support grows with the scale, which
//! avoids aliasing), and the centre crop.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use image::imageops;

use super::decode::Decoded;
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
    /// The filter of Pillow's number, which `preprocessor_config.json` uses.
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
            // Pillow's bicubic filter has a = -0.5, which is Catmull-Rom.
            Self::Bicubic => FilterType::CatmullRom,
        }
    }
}

/// Least ratio, along each axis, of a scaled JPEG to the resized image. Below it the embedding of a
/// photo changes.
const MARGIN: f64 = 1.5;

/// The reduction (8, 4, 2 or 1) along both axes that an image of `whole` pixels may get from its
/// decoder before it is resized to `size`.
pub fn reduction(whole: (u32, u32), size: Option<Size>) -> u32 {
    let Some(size) = size else { return 1 };
    let (width, height) = resized_size(whole, size);
    let enough_left = |length: u32, pixels: u64, divisor: u32| {
        f64::from(length) >= MARGIN * pixels as f64 * f64::from(divisor)
    };
    [8, 4, 2]
        .into_iter()
        .find(|by| enough_left(whole.0, width, *by) && enough_left(whole.1, height, *by))
        .unwrap_or(1)
}

/// Resizes `decoded` to `size`, if there is one, and crops the centre `width x height`, padded with
/// black.
///
/// Only the cropped part is computed: an image of 60,000 x 1 pixels, resized whole, would have 13
/// million columns.
///
/// # Errors
/// `ErrorKind::CorruptImage` if it can't be resized.
pub fn fit(
    decoded: &Decoded,
    size: Option<Size>,
    (height, width): (u32, u32),
    filter: Filter,
    resizer: &mut Resizer,
) -> Result<RgbImage> {
    let Decoded { rgb, area, .. } = decoded;
    let whole = (u64::from(decoded.size.0), u64::from(decoded.size.1));
    let resized = size.map_or(whole, |size| resized_size(decoded.size, size));
    if resized == (u64::from(rgb.width()), u64::from(rgb.height())) {
        return Ok(centre_crop(rgb, width, height));
    }
    let columns = Span::cropped(area.left, area.width, resized.0, width);
    let rows = Span::cropped(area.top, area.height, resized.1, height);
    let cropped = if rgb.width() > width && rgb.height() < rows.pixels {
        // Columns first: with rows first, a wide and flat image would grow before it shrinks.
        let narrow = convolve(rgb, columns, Span::whole(rgb.height()), filter, resizer)?;
        convolve(&narrow, Span::whole(narrow.width()), rows, filter, resizer)?
    } else {
        convolve(rgb, columns, rows, filter, resizer)?
    };
    if cropped.dimensions() == (width, height) {
        return Ok(cropped);
    }
    Ok(centre_crop(&cropped, width, height))
}

/// A span of one axis of the decoded pixels, and the number of pixels it is resized to.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: f64,
    length: f64,
    pixels: u32,
}

impl Span {
    fn whole(length: u32) -> Self {
        Self { start: 0.0, length: f64::from(length), pixels: length }
    }

    /// The span whose resized pixels are the centre `wanted` (or all) of `resized` pixels, which
    /// stand for `length` pixels from `start` on.
    fn cropped(start: f64, length: f64, resized: u64, wanted: u32) -> Self {
        match u32::try_from(resized) {
            Ok(pixels) if pixels <= wanted => Self { start, length, pixels },
            _ => {
                let scale = length / resized as f64;
                let skipped = ((resized - u64::from(wanted)) / 2) as f64 * scale;
                let cropped = (f64::from(wanted) * scale).min(length - skipped);
                Self { start: start + skipped, length: cropped, pixels: wanted }
            }
        }
    }
}

fn convolve(
    source: &RgbImage,
    columns: Span,
    rows: Span,
    filter: Filter,
    resizer: &mut Resizer,
) -> Result<RgbImage> {
    let failed = |error: String| {
        Error::new(ErrorKind::CorruptImage, "the image can't be resized")
            .with_context("size", format!("{} x {}", source.width(), source.height()))
            .with_source(error)
    };
    let view = ImageRef::new(source.width(), source.height(), source.as_raw(), PixelType::U8x3)
        .map_err(|error| failed(error.to_string()))?;
    let mut resized = Image::new(columns.pixels, rows.pixels, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter.kernel())).crop(
        columns.start,
        rows.start,
        columns.length,
        rows.length,
    );
    resizer.resize(&view, &mut resized, &options).map_err(|error| failed(error.to_string()))?;
    RgbImage::from_raw(columns.pixels, rows.pixels, resized.into_vec())
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a resized buffer has the wrong size"))
}

/// Width and height after resizing. The longer edge is rounded down, as in Hugging Face's
/// `get_resize_output_image_size`.
fn resized_size((width, height): (u32, u32), size: Size) -> (u64, u64) {
    let shortest = match size {
        Size::Exact { height, width } => return (u64::from(width), u64::from(height)),
        Size::Square(edge) | Size::ShortestEdge { shortest_edge: edge } => u64::from(edge),
    };
    let scaled = |long: u32, short: u32| shortest * u64::from(long) / u64::from(short.max(1));
    if width <= height {
        (shortest, scaled(height, width))
    } else {
        (scaled(width, height), shortest)
    }
}

/// The centre `width x height` of `source`, padded with black. An odd pixel is placed as in Hugging
/// Face's `center_crop`.
fn centre_crop(source: &RgbImage, width: u32, height: u32) -> RgbImage {
    let mut canvas = RgbImage::new(width, height);
    let offset = |outer: u32, inner: u32| -(i64::from(inner) - i64::from(outer)).div_euclid(2);
    let (left, top) = (offset(width, source.width()), offset(height, source.height()));
    imageops::replace(&mut canvas, source, left, top);
    canvas
}

#[cfg(test)]
mod tests {
    use super::super::decode::Area;
    use super::*;

    fn decoded(rgb: RgbImage) -> Decoded {
        let size = rgb.dimensions();
        let (width, height) = (f64::from(size.0), f64::from(size.1));
        let area = Area { left: 0.0, top: 0.0, width, height };
        Decoded { rgb, size, area, content_type: "image/png" }
    }

    #[test]
    fn enough_pixels_are_left_along_both_axes() {
        let clip = Some(Size::ShortestEdge { shortest_edge: 224 });
        assert_eq!(reduction((4000, 3000), clip), 8);
        assert_eq!(reduction((3000, 4000), clip), 8);
        assert_eq!(reduction((4000, 224 * 12), clip), 8);
        assert_eq!(reduction((4000, 224 * 12 - 1), clip), 4);
        assert_eq!(reduction((500, 375), clip), 1);
        assert_eq!(reduction((1_000_000, 1), clip), 1);
        let squash = Some(Size::Exact { height: 320, width: 320 });
        assert_eq!(reduction((1024, 1024), squash), 2);
        assert_eq!(reduction((4000, 900), squash), 1);
        assert_eq!(reduction((4000, 3000), None), 1);
    }

    #[test]
    fn the_longer_edge_is_rounded_down() {
        let size = Size::ShortestEdge { shortest_edge: 224 };
        assert_eq!(resized_size((451, 300), size), (336, 224));
        assert_eq!(resized_size((300, 451), size), (224, 336));
        assert_eq!(resized_size((10, 10), Size::Exact { height: 3, width: 5 }), (5, 3));
    }

    #[test]
    fn a_crop_larger_than_the_image_is_padded() {
        let white = RgbImage::from_pixel(2, 2, image::Rgb([255; 3]));
        let cropped = centre_crop(&white, 4, 4);
        assert_eq!(cropped.get_pixel(0, 0).0, [0; 3]);
        assert_eq!(cropped.get_pixel(1, 1).0, [255; 3]);
    }

    /// As in `transformers.image_transforms.center_crop`: an odd pixel of padding comes first, an
    /// odd pixel that is cut off comes last.
    #[test]
    fn odd_pixels_are_placed_as_by_hugging_face() {
        let row = RgbImage::from_fn(3, 1, |x, _| image::Rgb([u8::try_from(x).unwrap() + 1; 3]));
        let reds = |image: RgbImage| image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<u8>>();
        assert_eq!(reds(centre_crop(&row, 4, 1)), [0, 1, 2, 3]);
        assert_eq!(reds(centre_crop(&row, 2, 1)), [1, 2]);
        assert_eq!(reds(centre_crop(&row, 2, 2)), [0, 0, 1, 2]);
    }

    #[test]
    fn fit_equals_resizing_and_cropping() {
        let photo = RgbImage::from_fn(451, 300, |x, y| {
            image::Rgb([x, y, x * y].map(|value| u8::try_from(value * 7 % 251).unwrap()))
        });
        let size = Size::ShortestEdge { shortest_edge: 64 };
        let mut resizer = Resizer::new();
        let whole = decoded(photo.clone());
        let fitted = fit(&whole, Some(size), (48, 56), Filter::Bicubic, &mut resizer).unwrap();
        let whole = convolve(
            &photo,
            Span { pixels: 96, ..Span::whole(451) },
            Span { pixels: 64, ..Span::whole(300) },
            Filter::Bicubic,
            &mut resizer,
        );
        let cropped = centre_crop(&whole.unwrap(), 56, 48);
        let furthest = fitted.iter().zip(cropped.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(furthest.unwrap() <= 1, "{furthest:?}");
    }

    #[test]
    fn a_line_of_pixels_is_resized_only_where_it_is_cropped() {
        let squash = Size::Exact { height: 320, width: 320 };
        for size in [Size::ShortestEdge { shortest_edge: 320 }, squash] {
            for (width, height) in [(1_000_000, 1), (1, 1_000_000)] {
                let line = RgbImage::from_pixel(width, height, image::Rgb([9; 3]));
                let (line, bicubic) = (decoded(line), Filter::Bicubic);
                let fitted =
                    fit(&line, Some(size), (320, 320), bicubic, &mut Resizer::new()).unwrap();
                assert_eq!(fitted.dimensions(), (320, 320));
                assert!(fitted.iter().all(|value| *value == 9));
            }
        }
    }
}
