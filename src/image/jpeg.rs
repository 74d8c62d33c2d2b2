//! JPEG decoding with libjpeg-turbo, which can scale while it decodes: it skips the high
//! frequencies of each block of 8 x 8 pixels and computes 1/2, 1/4 or 1/8 of the pixels along
//! each axis.

use image::RgbImage;
use image::metadata::Orientation;
use turbojpeg::{Colorspace, Decompressor, PixelFormat, ScalingFactor};

use super::limits::check_size;
use super::workspace::Workspace;
use crate::error::{Error, ErrorKind, Result};

/// Most scans of a progressive JPEG. Encoders write about ten; a scan of a few bytes makes the
/// decoder process all pixels again. The `image` crate's JPEG decoder has the same limit.
const MAX_SCANS: u32 = 100;

pub struct Jpeg {
    pub rgb: RgbImage,
    /// Width and height of the whole image.
    pub size: (u32, u32),
    /// Pixels of the whole image per pixel of `rgb`, along each axis.
    pub reduction: u32,
}

/// Decodes `bytes`, scaled down by `reduction` of the image's width and height. None if this
/// decoder can't read the header, and the `image` crate may.
///
/// # Errors
/// `ErrorKind::CorruptImage` or `ImageTooLarge`.
pub fn decode(
    bytes: &[u8],
    max_pixels: u64,
    reduction: impl Fn(u32, u32) -> u32,
    workspace: &mut Workspace,
) -> Result<Option<Jpeg>> {
    let decompressor = match &mut workspace.decompressor {
        Some(kept) => kept,
        none => none.insert(new_decompressor().map_err(corrupt)?),
    };
    let header = match decompressor.read_header(bytes) {
        Ok(header) => header,
        Err(error) if is_harmless(&error, bytes) => return Ok(None),
        Err(error) => return Err(corrupt(error)),
    };
    let edge = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let size = (edge(header.width), edge(header.height));
    check_size(size.0, size.1, max_pixels)?;
    let (reduction, scale) = match reduction(size.0, size.1) {
        // A lossless JPEG has no frequencies.
        _ if header.is_lossless => (1, ScalingFactor::ONE),
        2 => (2, ScalingFactor::ONE_HALF),
        4 => (4, ScalingFactor::ONE_QUARTER),
        8 => (8, ScalingFactor::ONE_EIGHTH),
        _ => (1, ScalingFactor::ONE),
    };
    decompressor.set_scaling_factor(scale).map_err(corrupt)?;
    let format = match header.colorspace {
        Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
        _ => PixelFormat::RGB,
    };
    let (width, height) = (scale.scale(header.width), scale.scale(header.height));
    let pitch = width * format.size();
    let mut pixels = workspace.take_buffer(pitch * height);
    let target = turbojpeg::Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
    let decompressed = workspace.decompressor.as_mut().map(|kept| kept.decompress(bytes, target));
    match decompressed {
        Some(Err(error)) if !is_harmless(&error, bytes) => return Err(corrupt(error)),
        _ => {}
    }
    if format == PixelFormat::CMYK {
        pixels = pixels.as_chunks().0.iter().flat_map(|ink| cmyk_to_rgb(*ink)).collect();
    }
    let rgb = RgbImage::from_raw(edge(width), edge(height), pixels)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a JPEG's buffer has the wrong size"))?;
    Ok(Some(Jpeg { rgb, size, reduction }))
}

fn new_decompressor() -> turbojpeg::Result<Decompressor> {
    let mut decompressor = Decompressor::new()?;
    decompressor.set_scan_limit(MAX_SCANS)?;
    Ok(decompressor)
}

fn corrupt(error: turbojpeg::Error) -> Error {
    Error::new(ErrorKind::CorruptImage, "the JPEG can't be decoded").with_source(error)
}

/// The orientation in the EXIF block; none without a valid block.
pub fn orientation(bytes: &[u8]) -> Orientation {
    exif_block(bytes).and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

/// The EXIF block, which is in a segment before the first scan.
fn exif_block(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        // Any number of 0xff bytes may precede a marker; stray bytes are skipped.
        let is_marker = |pair: &[u8]| matches!(pair, [0xff, 1..=0xfe]);
        let start = rest.windows(2).position(is_marker)?;
        let marker = rest[start + 1];
        rest = &rest[start + 2..];
        match marker {
            // Start of a scan, or end of the image.
            0xda | 0xd9 => return None,
            // Markers without a segment.
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let (length, _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let segment = rest.get(2..length)?;
        if marker == 0xe1
            && let Some(block) = segment.strip_prefix(b"Exif\0\0")
        {
            return Some(block);
        }
        rest = &rest[length..];
    }
}

/// Whether `error` warns of stray bytes between segments, which are common and harmless. libjpeg
/// reports only its first warning, so the end of the file is checked as well.
fn is_harmless(error: &turbojpeg::Error, bytes: &[u8]) -> bool {
    let turbojpeg::Error::TurboJpegError(message) = error else { return false };
    message.contains("extraneous bytes") && has_end_marker(bytes)
}

/// Whether an end-of-image marker follows the last start of a scan.
fn has_end_marker(bytes: &[u8]) -> bool {
    let mut markers = bytes.windows(2).rev().filter(|pair| matches!(pair, [0xff, 0xd9 | 0xda]));
    markers.next() == Some([0xff, 0xd9].as_slice())
}

/// RGB of a CMYK pixel. JPEGs store CMYK inverted (Adobe's convention), so each channel is the
/// product of its ink and black.
fn cmyk_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        let light = (u32::from(ink) * u32::from(black) + 127) / 255;
        u8::try_from(light).unwrap_or(u8::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exif_block_is_found_after_other_segments() {
        let photo = include_bytes!("../../tests/data/clip-preprocess/cat-exif6.jpg");
        assert_eq!(orientation(photo), Orientation::Rotate90);
        let mut moved = vec![0xff, 0xd8, 0xff, 0xfe, 0, 4, 1, 2, 7, 0xff];
        moved.extend_from_slice(&photo[2..]);
        assert_eq!(orientation(&moved), Orientation::Rotate90);
    }

    #[test]
    fn a_truncated_file_has_no_exif_block() {
        let photo = include_bytes!("../../tests/data/clip-preprocess/cat-exif6.jpg");
        let block = exif_block(photo).unwrap();
        let end = block.as_ptr() as usize - photo.as_ptr() as usize + block.len();
        for length in 0..end {
            assert_eq!(exif_block(&photo[..length]), None, "{length} bytes");
        }
        assert_eq!(exif_block(&photo[..end]), Some(block));
    }
}
