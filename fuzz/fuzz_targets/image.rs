//! Any bytes as an image of at most a megapixel.
#![no_main]

use std::sync::LazyLock;

use fusioncap::ErrorKind;
use fusioncap::bundle::{PreprocessorConfig, Size};
use fusioncap::config::{DecodeMode, Limits};
use fusioncap::image::Preprocessor;
use libfuzzer_sys::fuzz_target;

static PREPROCESSOR: LazyLock<Preprocessor> = LazyLock::new(|| {
    let config = PreprocessorConfig {
        do_resize: true,
        size: Size::ShortestEdge { shortest_edge: 32 },
        resample: 3,
        do_center_crop: true,
        crop_size: Some(Size::Exact { height: 32, width: 32 }),
        rescale_factor: 1.0 / 255.0,
        image_mean: [0.5; 3],
        image_std: [0.5; 3],
    };
    Preprocessor::new(config).expect("the configuration is sound")
});

fuzz_target!(
    // Only a panic that gets past the preprocessor is one too many; libFuzzer would end at any.
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| {
        let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
        for mode in [DecodeMode::Exact, DecodeMode::Fast] {
            match PREPROCESSOR.clone().in_mode(mode).decode(input, &limits) {
                Ok(pixels) => {
                    assert_eq!(pixels.rgb.len(), 32 * 32 * 3);
                    let claimed = u64::from(pixels.source_width) * u64::from(pixels.source_height);
                    assert!((1..=limits.max_pixels).contains(&claimed), "{claimed} pixels");
                }
                Err(error) => {
                    let kind = error.kind();
                    assert!(ErrorKind::DEAD_LETTERS.contains(&kind), "refused as {kind}");
                }
            }
        }
    }
);
