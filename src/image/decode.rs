//! Any supported encoding -> upright 8-bit RGB.
//!
//! JPEGs go through libjpeg-turbo, everything else through the `image` crate. The number of pixels
//! is checked against the header before anything is decoded.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage,
};
use turbojpeg::{Colorspace, Decompressor, PixelFormat};

use crate::error::{Error, ErrorKind, Result};

/// Bytes a decoder may allocate for each pixel that the limit allows.
const BYTES_PER_PIXEL: u64 = 16;
/// Longest edge in pixels; the filter of a resize takes memory in proportion to it.
const MAX_EDGE: u32 = 1 << 20;
/// Most scans of a progressive JPEG. Encoders write about ten; each one, of a few bytes, makes
/// the decoder go over all pixels again. The `image` crate's JPEG decoder has the same limit.
const MAX_SCANS: u32 = 100;

pub struct Decoded {
    pub rgb: RgbImage,
    pub content_type: &'static str,
}

/// Decodes `bytes` into RGB: orientation applied, alpha laid on white, 16 bits scaled to 8, the
/// first frame of an animation.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Decoded> {
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::EmptyObject, "the object is empty"));
    }
    let format = image::guess_format(bytes).map_err(|_| not_an_image(bytes))?;
    let content_type = format.to_mime_type();
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_PER_PIXEL));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| undecodable(error, bytes))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, max_pixels)?;
    // A broken EXIF block is no reason to lose the image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let rgb = match format {
        ImageFormat::Jpeg => match jpeg(bytes, max_pixels)? {
            Some(rgb) => rgb,
            None => flatten(pixels(decoder, bytes)?),
        },
        _ => flatten(pixels(decoder, bytes)?),
    };
    Ok(Decoded { rgb: upright(rgb, orientation), content_type })
}

fn check_size(width: u32, height: u32, max_pixels: u64) -> Result<()> {
    let size = format!("{width} x {height}");
    if width == 0 || height == 0 {
        return Err(
            Error::new(ErrorKind::CorruptImage, "the image has no pixels").with("size", size)
        );
    }
    if width.max(height) > MAX_EDGE {
        return Err(Error::new(ErrorKind::ImageTooLarge, "an edge of the image is too long")
            .with("size", size)
            .with("longest", MAX_EDGE));
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(Error::new(ErrorKind::ImageTooLarge, "the image has too many pixels")
            .with("size", size)
            .with("limits.max_pixels", max_pixels));
    }
    Ok(())
}

fn pixels(decoder: impl ImageDecoder, bytes: &[u8]) -> Result<DynamicImage> {
    DynamicImage::from_decoder(decoder).map_err(|error| undecodable(error, bytes))
}

/// A JPEG by libjpeg-turbo; None where only the other decoder gets past its header.
fn jpeg(bytes: &[u8], max_pixels: u64) -> Result<Option<RgbImage>> {
    let corrupt = |error: turbojpeg::Error| {
        Error::new(ErrorKind::CorruptImage, "the JPEG can't be decoded").because(error)
    };
    let mut decompressor = Decompressor::new().map_err(corrupt)?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(corrupt)?;
    let header = match decompressor.read_header(bytes) {
        Ok(header) => header,
        Err(error) if is_harmless(&error, bytes) => return Ok(None),
        Err(error) => return Err(corrupt(error)),
    };
    // Checked again: two parsers may read one hostile header differently.
    let edge = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let (width, height) = (edge(header.width), edge(header.height));
    check_size(width, height, max_pixels)?;
    let format = match header.colorspace {
        Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
        _ => PixelFormat::RGB,
    };
    let pitch = header.width * format.size();
    let mut pixels = vec![0; pitch * header.height];
    let target = turbojpeg::Image {
        pixels: pixels.as_mut_slice(),
        width: header.width,
        pitch,
        height: header.height,
        format,
    };
    match decompressor.decompress(bytes, target) {
        Ok(()) => {}
        Err(error) if is_harmless(&error, bytes) => {}
        Err(error) => return Err(corrupt(error)),
    }
    if format == PixelFormat::CMYK {
        pixels = pixels.as_chunks().0.iter().flat_map(|ink| without_ink(*ink)).collect();
    }
    RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a JPEG's buffer has the wrong size"))
        .map(Some)
}

/// Whether `error` is a warning of stray bytes between segments, which are common and do no harm.
/// libjpeg tells its first warning only, so whether the file also ends too early is looked up.
fn is_harmless(error: &turbojpeg::Error, bytes: &[u8]) -> bool {
    let turbojpeg::Error::TurboJpegError(message) = error else { return false };
    message.contains("extraneous bytes") && is_ended(bytes)
}

/// Whether an end-of-image marker follows the last start of a scan.
fn is_ended(bytes: &[u8]) -> bool {
    let mut markers = bytes.windows(2).rev().filter(|pair| matches!(pair, [0xff, 0xd9 | 0xda]));
    markers.next() == Some([0xff, 0xd9].as_slice())
}

/// RGB of a CMYK pixel as JPEGs hold it, inverted by Adobe's convention: what each ink lets
/// through of what black lets through.
fn without_ink([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        let light = (u32::from(ink) * u32::from(black) + 127) / 255;
        u8::try_from(light).unwrap_or(u8::MAX)
    })
}

/// 8-bit RGB of whatever was decoded, alpha laid on white.
fn flatten(decoded: DynamicImage) -> RgbImage {
    if !decoded.color().has_alpha() {
        return decoded.into_rgb8();
    }
    let rgba = decoded.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (target, source) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [red, green, blue, alpha] = source.0;
        *target = Rgb([red, green, blue].map(|value| on_white(value, alpha)));
    }
    rgb
}

fn on_white(value: u8, alpha: u8) -> u8 {
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
            Error::new(ErrorKind::ImageTooLarge, "the image needs too much memory").because(error)
        }
        ImageError::Unsupported(_) => not_an_image(bytes).because(error),
        _ => Error::new(ErrorKind::CorruptImage, "the image can't be decoded").because(error),
    }
}

/// Says what the bytes look like instead, as far as a glance tells.
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
    Error::new(ErrorKind::NotAnImage, "the object is in no supported image format")
        .with("looks like", looks_like)
        .with("allowed", "JPEG, PNG, GIF, WebP, BMP, TIFF")
}
