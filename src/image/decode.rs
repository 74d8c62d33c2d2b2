//! Decodes any supported format to upright 8-bit RGB.
//!
//! libjpeg-turbo (`jpeg`) decodes JPEGs and the `image` crate everything else. The number of pixels
//! in the header is checked before anything is decoded.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage,
};

use super::jpeg::{self, Jpeg};
use super::limits::check_size;
use super::workspace::Workspace;
use crate::error::{Error, ErrorKind, Result};

/// Bytes that a decoder may allocate for each pixel of the limit.
const BYTES_PER_PIXEL: u64 = 16;

pub struct Decoded {
    pub rgb: RgbImage,
    /// Width and height of the whole image, upright.
    pub size: (u32, u32),
    pub area: Area,
    pub content_type: &'static str,
}

/// The area of the image in the decoded pixels. A scaled JPEG whose edges are not a multiple of the
/// reduction covers its last pixels only in part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// Decodes `bytes` to RGB: applies the orientation, blends alpha onto white, scales 16 bits to 8 and
/// takes the first frame of an animation. A JPEG is scaled down along both axes by `reduction` of
/// its upright width and height.
///
/// # Errors
/// `ErrorKind::EmptyObject`, `NotAnImage`, `CorruptImage` or `ImageTooLarge`.
pub fn decode(
    bytes: &[u8],
    max_pixels: u64,
    reduction: impl Fn((u32, u32)) -> u32,
    workspace: &mut Workspace,
) -> Result<Decoded> {
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::EmptyObject, "the object is empty"));
    }
    let format = image::guess_format(bytes).map_err(|_| not_an_image(bytes))?;
    let content_type = format.to_mime_type();
    if format == ImageFormat::Jpeg {
        let orientation = jpeg::orientation(bytes);
        let upright_reduction =
            |width, height| reduction(upright_size((width, height), orientation));
        if let Some(Jpeg { rgb, size, reduction }) =
            jpeg::decode(bytes, max_pixels, upright_reduction, workspace)?
        {
            let area = image_area(rgb.dimensions(), size, reduction, orientation);
            let size = upright_size(size, orientation);
            return Ok(Decoded { rgb: upright(rgb, orientation), size, area, content_type });
        }
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_PER_PIXEL));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| undecodable(error, bytes))?;
    let size = decoder.dimensions();
    check_size(size.0, size.1, max_pixels)?;
    // An image with a broken EXIF block is used as it is.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let area = image_area(size, size, 1, orientation);
    let image = DynamicImage::from_decoder(decoder).map_err(|error| undecodable(error, bytes))?;
    let rgb = upright(flatten(image), orientation);
    Ok(Decoded { rgb, size: upright_size(size, orientation), area, content_type })
}

/// Width and height of the upright image.
fn upright_size((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// The area of an image of `whole` pixels in its `reduced` pixels once these are upright. Before
/// that it begins at the first pixel; turned or flipped it may end at the last one instead.
fn image_area(
    reduced: (u32, u32),
    whole: (u32, u32),
    reduction: u32,
    orientation: Orientation,
) -> Area {
    use Orientation::{
        FlipHorizontal, FlipVertical, Rotate90, Rotate180, Rotate270, Rotate270FlipH,
    };
    let (reduced, whole) = (upright_size(reduced, orientation), upright_size(whole, orientation));
    let length = |pixels: u32| f64::from(pixels) / f64::from(reduction);
    let (width, height) = (length(whole.0), length(whole.1));
    let from_right = matches!(orientation, FlipHorizontal | Rotate90 | Rotate180 | Rotate270FlipH);
    let from_below = matches!(orientation, FlipVertical | Rotate180 | Rotate270 | Rotate270FlipH);
    let left = if from_right { f64::from(reduced.0) - width } else { 0.0 };
    let top = if from_below { f64::from(reduced.1) - height } else { 0.0 };
    Area { left, top, width, height }
}

/// Converts to 8-bit RGB and blends alpha onto white.
fn flatten(decoded: DynamicImage) -> RgbImage {
    if !decoded.color().has_alpha() {
        return decoded.into_rgb8();
    }
    let rgba = decoded.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (target, source) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [red, green, blue, alpha] = source.0;
        *target = Rgb([red, green, blue].map(|value| blend_on_white(value, alpha)));
    }
    rgb
}

fn blend_on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let blended = (value * alpha + 255 * (255 - alpha) + 127) / 255;
    u8::try_from(blended).unwrap_or(u8::MAX)
}

fn upright(rgb: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return rgb;
    }
    let mut image = DynamicImage::ImageRgb8(rgb);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

fn undecodable(error: ImageError, bytes: &[u8]) -> Error {
    match error {
        ImageError::Limits(_) => {
            Error::new(ErrorKind::ImageTooLarge, "decoding the image needs too much memory")
                .with_source(error)
        }
        ImageError::Unsupported(_) => not_an_image(bytes).with_source(error),
        _ => Error::new(ErrorKind::CorruptImage, "the image can't be decoded").with_source(error),
    }
}

/// The error names the format that the first bytes suggest.
fn not_an_image(bytes: &[u8]) -> Error {
    let start = bytes[..bytes.len().min(64)].trim_ascii_start();
    let looks_like = if start.starts_with(b"<") {
        "HTML or XML"
    } else if start.starts_with(b"{") || start.starts_with(b"[") {
        "JSON"
    } else if start.starts_with(b"%PDF") {
        "PDF"
    } else if std::str::from_utf8(start).is_ok() {
        "text"
    } else {
        "unknown"
    };
    Error::new(ErrorKind::NotAnImage, "the object is not in a supported image format")
        .with_context("looks like", looks_like)
        .with_context("allowed", "JPEG, PNG, GIF, WebP, BMP, TIFF")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of the last column and row that the image does not cover is white in this test, and
    /// must be outside of the area.
    #[test]
    fn the_area_follows_the_orientation() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).unwrap();
            let reduced =
                RgbImage::from_fn(5, 3, |x, y| Rgb([255 * u8::from(x == 4 || y == 2); 3]));
            let area = image_area((5, 3), (33, 20), 8, orientation);
            let turned = upright(reduced, orientation);
            let middle = |start: f64, pixels: f64| (start + pixels / 2.0) as u32;
            // The outer pixels that the area covers only in part are white.
            let part = |start: f64| start.fract() > 0.0;
            let (column, row) = (middle(area.left, area.width), middle(area.top, area.height));
            let is_white = |x: u32, y: u32| turned.get_pixel(x, y).0[0] == 255;
            let last = (turned.width() - 1, turned.height() - 1);
            assert_eq!(is_white(0, row), part(area.left), "{orientation:?}");
            assert_eq!(is_white(last.0, row), !part(area.left), "{orientation:?}");
            assert_eq!(is_white(column, 0), part(area.top), "{orientation:?}");
            assert_eq!(is_white(column, last.1), !part(area.top), "{orientation:?}");
            assert!(area.left + area.width <= f64::from(turned.width()));
            assert!(area.top + area.height <= f64::from(turned.height()));
        }
    }
}
