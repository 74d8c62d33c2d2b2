//! From JPEG bytes to CLIP's 224 x 224 input on one core: our path against the `image` crate
//! alone (its own JPEG decoder, orientation, Catmull-Rom, centre crop). `cargo bench --bench decode`.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use fusioncap::bundle::{PreprocessorConfig, Size};
use fusioncap::config::Limits;
use fusioncap::image::Preprocessor;
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};

const SIDE: u32 = 224;
const PHOTOS: [&str; 2] = ["china-640x427.jpg", "china-4000x2669.jpg"];

fn main() {
    divan::main();
}

#[divan::bench(args = PHOTOS)]
fn fusioncap(bencher: Bencher, name: &str) {
    let (preprocessor, limits) = (preprocessor(), Limits::default());
    measure(bencher, name, |bytes| {
        preprocessor.decode(bytes, &limits).expect("the photo can be decoded").rgb
    });
}

#[divan::bench(args = PHOTOS)]
fn image_crate(bencher: Bencher, name: &str) {
    measure(bencher, name, |bytes| plain(bytes).into_raw());
}

fn measure(bencher: Bencher, name: &str, decode: impl Fn(&[u8]) -> Vec<u8>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/clip-preprocess");
    let bytes = fs::read(folder.join(name)).expect("the photo can be read");
    assert_eq!(decode(&bytes).len(), (SIDE * SIDE * 3) as usize);
    bencher
        .counter(ItemsCount::new(1_usize))
        .counter(BytesCount::of_slice(&bytes))
        .bench_local(|| decode(divan::black_box(&bytes)));
}

fn preprocessor() -> Preprocessor {
    let config = PreprocessorConfig {
        do_resize: true,
        size: Size::ShortestEdge { shortest_edge: SIDE },
        resample: 3,
        do_center_crop: true,
        crop_size: Some(Size::Exact { height: SIDE, width: SIDE }),
        rescale_factor: 1.0 / 255.0,
        image_mean: [0.481, 0.457, 0.408],
        image_std: [0.268, 0.261, 0.275],
    };
    Preprocessor::new(config).expect("the configuration is supported")
}

/// What one writes with the `image` crate and nothing else.
fn plain(bytes: &[u8]) -> RgbImage {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().expect("a JPEG");
    let mut decoder = reader.into_decoder().expect("a JPEG");
    let orientation = decoder.orientation().expect("a readable EXIF block");
    let mut decoded = DynamicImage::from_decoder(decoder).expect("the photo can be decoded");
    decoded.apply_orientation(orientation);
    let rgb = decoded.into_rgb8();
    let (width, height) = rgb.dimensions();
    let short = width.min(height);
    let (wide, high) = (SIDE * width / short, SIDE * height / short);
    let resized = imageops::resize(&rgb, wide, high, FilterType::CatmullRom);
    let (left, top) = ((wide - SIDE) / 2, (high - SIDE) / 2);
    imageops::crop_imm(&resized, left, top, SIDE, SIDE).to_image()
}
