//! Limits on the size of an image.

use crate::error::{Error, ErrorKind, Result};

/// Longest edge in pixels: the memory of a resize filter is proportional to it.
const MAX_EDGE: u32 = 1 << 20;

/// Checks the size in an image's header.
///
/// # Errors
/// `ErrorKind::CorruptImage` for an image without pixels, `ErrorKind::ImageTooLarge` above a limit.
pub fn check_size(width: u32, height: u32, max_pixels: u64) -> Result<()> {
    let size = format!("{width} x {height}");
    if width == 0 || height == 0 {
        return Err(Error::new(ErrorKind::CorruptImage, "the image has no pixels")
            .with_context("size", size));
    }
    if width.max(height) > MAX_EDGE {
        return Err(Error::new(ErrorKind::ImageTooLarge, "an edge of the image is too long")
            .with_context("size", size)
            .with_context("limit", MAX_EDGE));
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(Error::new(ErrorKind::ImageTooLarge, "the image has too many pixels")
            .with_context("size", size)
            .with_context("limits.max_pixels", max_pixels));
    }
    Ok(())
}
