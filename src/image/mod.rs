//! Decodes and preprocesses images as CLIP's image processor does.
//!
//! `decode` turns any supported format into upright 8-bit RGB, `resize` resizes as Pillow does, and
//! [`Preprocessor`] runs both with the settings of a `preprocessor_config.json`. The result is
//! pixels or an error that dead-letters: no input makes it panic.
//!
//! In mode `fast` the JPEG decoder scales large images down, which saves most of the work, and
//! leaves enough pixels for the resize that follows. Mode `exact` is CLIP's own arithmetic.

mod decode;
mod jpeg;
mod limits;
mod resize;
mod sharpen;
mod workspace;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bundle::{PreprocessorConfig, Size};
use crate::config::{DecodeMode, Limits};
use crate::error::{Error, ErrorKind, Result};

/// An image ready for the vision tower: 8-bit RGB, `height x width x 3`, at the model's size.
#[derive(Clone, Debug)]
pub struct DecodedPixels {
    /// Size of the source image in pixels, after its EXIF orientation is applied.
    pub source_width: u32,
    pub source_height: u32,
    /// Media type detected from the bytes, for example `image/jpeg`.
    pub content_type: &'static str,
    /// Row-major RGB at the model's input size.
    pub rgb: Vec<u8>,
}

/// Decodes, resizes, crops and normalises with the settings of a `preprocessor_config.json`.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    filter: resize::Filter,
    resized: Option<Size>,
    /// Height and width of the model's input.
    input: (u32, u32),
    /// The normalised value of each 8-bit value, for each channel.
    normalised: [[f32; 256]; 3],
    mode: DecodeMode,
}

impl Preprocessor {
    /// # Errors
    /// `ErrorKind::Bundle` for settings that are not supported.
    pub fn new(config: PreprocessorConfig) -> Result<Self> {
        let unsupported = |what: &'static str| {
            Error::new(ErrorKind::Bundle, what)
                .with_context("file", crate::bundle::PREPROCESSOR_CONFIG)
        };
        let filter = resize::Filter::from_pillow(config.resample)
            .ok_or_else(|| unsupported("resample is not supported (allowed: 1, 2, 3)"))?;
        let target = if config.do_center_crop { config.crop_size } else { Some(config.size) };
        let input = match target {
            Some(Size::Exact { height, width }) => (height, width),
            Some(Size::Square(side)) => (side, side),
            // Without a crop, a shortest edge does not determine the other edge.
            Some(Size::ShortestEdge { shortest_edge }) if config.do_center_crop => {
                (shortest_edge, shortest_edge)
            }
            _ => {
                return Err(unsupported(
                    "the settings do not determine the size of the model's input",
                ));
            }
        };
        if !config.do_resize && !config.do_center_crop {
            return Err(unsupported("without do_resize, do_center_crop is required"));
        }
        let sane = |edge: u32| (1..=8192).contains(&edge);
        if !sane(input.0) || !sane(input.1) || config.image_std.contains(&0.0) {
            return Err(unsupported("a size or image_std is out of range"));
        }
        let normalised = std::array::from_fn(|channel| {
            let (mean, deviation) = (config.image_mean[channel], config.image_std[channel]);
            let (scale, shift) = (config.rescale_factor / deviation, -mean / deviation);
            std::array::from_fn(|value| (value as f32).mul_add(scale, shift))
        });
        let resized = config.do_resize.then_some(match config.size {
            // Without a crop, one number is the length of both edges.
            Size::Square(side) if config.do_center_crop => {
                Size::ShortestEdge { shortest_edge: side }
            }
            Size::Square(side) => Size::Exact { height: side, width: side },
            size => size,
        });
        Ok(Self { filter, resized, input, normalised, mode: DecodeMode::Exact })
    }

    /// This preprocessor with another decode mode; [`Self::new`] has `exact`.
    #[must_use]
    pub fn in_mode(self, mode: DecodeMode) -> Self {
        Self { mode, ..self }
    }

    /// Height and width of the model's input in pixels.
    pub fn input_size(&self) -> (usize, usize) {
        (self.input.0 as usize, self.input.1 as usize)
    }

    /// Decodes `bytes` in any supported format and brings them to the model's input size.
    ///
    /// # Errors
    /// `ErrorKind::EmptyObject`, `NotAnImage`, `CorruptImage` or `ImageTooLarge`.
    pub fn decode(&self, bytes: &[u8], limits: &Limits) -> Result<DecodedPixels> {
        // Decoders read untrusted files: a panic must fail only this image.
        catch_unwind(AssertUnwindSafe(|| self.decode_unguarded(bytes, limits))).unwrap_or_else(
            |_| Err(Error::new(ErrorKind::CorruptImage, "the decoder panicked on this image")),
        )
    }

    fn decode_unguarded(&self, bytes: &[u8], limits: &Limits) -> Result<DecodedPixels> {
        workspace::with(|workspace| {
            let reduction = |whole| match self.mode {
                DecodeMode::Exact => 1,
                DecodeMode::Fast => resize::reduction(whole, self.resized),
            };
            let mut decoded = decode::decode(bytes, limits.max_pixels, reduction, workspace)?;
            if decoded.rgb.dimensions() != decoded.size {
                sharpen::sharpen(&mut decoded.rgb);
            }
            let (source_width, source_height) = decoded.size;
            let resizer = &mut workspace.resizer;
            let fitted = resize::fit(&decoded, self.resized, self.input, self.filter, resizer)?;
            workspace.return_buffer(decoded.rgb.into_raw());
            let content_type = decoded.content_type;
            Ok(DecodedPixels { source_width, source_height, content_type, rgb: fitted.into_raw() })
        })
    }

    /// Writes `rgb` into `tensor` as normalised planes, `[3, height, width]`.
    pub fn normalise(&self, rgb: &[u8], tensor: &mut [f32]) {
        let plane = (rgb.len() / 3).max(1);
        for (channel, values) in tensor.chunks_exact_mut(plane).enumerate().take(3) {
            let normalised = &self.normalised[channel];
            for (value, pixel) in values.iter_mut().zip(rgb.as_chunks::<3>().0) {
                *value = normalised[usize::from(pixel[channel])];
            }
        }
    }
}
