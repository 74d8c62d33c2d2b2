//! Encoded bytes -> pixels as CLIP's image processor gives them.
//!
//! [`decode`] turns any supported encoding into upright 8-bit RGB, [`resize`] brings it to the
//! model's size as Pillow would, [`Preprocessor`] does both as a `preprocessor_config.json` says.
//! Whatever the bytes are, the answer is pixels or a dead letter's error: nothing here panics.
//!
//! In the mode `fast` a large JPEG is made smaller by its decoder, which saves most of the work;
//! enough pixels remain for the resizing that follows. `exact` is CLIP's own arithmetic.

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
    /// Media type found from the bytes themselves, such as `image/jpeg`.
    pub content_type: &'static str,
    /// Row-major RGB at the model's input size.
    pub rgb: Vec<u8>,
}

/// Decodes, resizes, crops and normalises as a `preprocessor_config.json` says.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    filter: resize::Filter,
    resized: Option<Size>,
    /// Height and width of the model's input.
    input: (u32, u32),
    /// The normalised value of each of a channel's 256.
    normalised: [[f32; 256]; 3],
    mode: DecodeMode,
}

impl Preprocessor {
    /// # Errors
    /// `ErrorKind::Bundle` if the configuration asks for what is not supported.
    pub fn new(config: PreprocessorConfig) -> Result<Self> {
        let unsupported = |what: &'static str| {
            Error::new(ErrorKind::Bundle, what).with("file", crate::bundle::PREPROCESSOR_CONFIG)
        };
        let filter = resize::Filter::from_pillow(config.resample)
            .ok_or_else(|| unsupported("resample is not supported (1, 2 and 3 are)"))?;
        let target = if config.do_center_crop { config.crop_size } else { Some(config.size) };
        let input = match target {
            Some(Size::Exact { height, width }) => (height, width),
            Some(Size::Square(side)) => (side, side),
            // A shortest edge alone leaves the other edge open.
            Some(Size::ShortestEdge { shortest_edge }) if config.do_center_crop => {
                (shortest_edge, shortest_edge)
            }
            _ => return Err(unsupported("the size of the model's input is not fixed")),
        };
        if !config.do_resize && !config.do_center_crop {
            return Err(unsupported("without do_resize a centre crop is needed"));
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
            // Without a crop, one number means both edges.
            Size::Square(side) if config.do_center_crop => {
                Size::ShortestEdge { shortest_edge: side }
            }
            Size::Square(side) => Size::Exact { height: side, width: side },
            size => size,
        });
        Ok(Self { filter, resized, input, normalised, mode: DecodeMode::Exact })
    }

    /// The same in another mode than `exact`, or in that.
    #[must_use]
    pub fn in_mode(self, mode: DecodeMode) -> Self {
        Self { mode, ..self }
    }

    /// Height and width of the model's input in pixels.
    pub fn input_size(&self) -> (usize, usize) {
        (self.input.0 as usize, self.input.1 as usize)
    }

    /// Decodes `bytes`, whatever supported format they are in.
    ///
    /// # Errors
    /// `EmptyObject`, `NotAnImage`, `CorruptImage` or `ImageTooLarge`.
    pub fn decode(&self, bytes: &[u8], limits: &Limits) -> Result<DecodedPixels> {
        // Decoders are fed the world's worst files; one that panics costs its image, no more.
        catch_unwind(AssertUnwindSafe(|| self.decode_unguarded(bytes, limits))).unwrap_or_else(
            |_| Err(Error::new(ErrorKind::CorruptImage, "the decoder failed on this image")),
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
            workspace.give_back(decoded.rgb.into_raw());
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
