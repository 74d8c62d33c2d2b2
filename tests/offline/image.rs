//! Decoding and preprocessing against Pillow and CLIP's own image processor, and on files that are
//! not images; mode `fast` gives the model nearly the same input as `exact`.

use std::fs;
use std::path::{Path, PathBuf};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{PixelType, Resizer};
use fusioncap::ErrorKind;
use fusioncap::bundle::{Bundle, PreprocessorConfig, Size};
use fusioncap::config::{DecodeMode, Limits, Model, Runtime};
use fusioncap::engine::Engine;
use fusioncap::image::Preprocessor;
use image::RgbImage;
use kit::bucket::oversized_png;
use kit::{many_scans, root};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/clip-preprocess");

fn clip() -> Preprocessor {
    Preprocessor::new(PreprocessorConfig {
        do_resize: true,
        size: Size::ShortestEdge { shortest_edge: 224 },
        resample: 3,
        do_center_crop: true,
        crop_size: Some(Size::Exact { height: 224, width: 224 }),
        rescale_factor: 1.0 / 255.0,
        image_mean: [0.481, 0.457, 0.408],
        image_std: [0.268, 0.261, 0.275],
    })
    .unwrap()
}

fn images() -> Vec<PathBuf> {
    let entries = fs::read_dir(FIXTURES).unwrap().map(|entry| entry.unwrap().path());
    let is_input = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        !name.contains(".expected.") && !name.ends_with(".md")
    };
    entries.filter(is_input).collect()
}

fn expected(path: &Path) -> Vec<u8> {
    image::open(path.with_extension("expected.png")).unwrap().into_rgb8().into_raw()
}

fn refusal(bytes: &[u8]) -> ErrorKind {
    clip().decode(bytes, &Limits::default()).map(|_| "pixels").unwrap_err().kind()
}

#[test]
fn preprocessing_equals_clips_processor() {
    let preprocessor = clip();
    let paths = images();
    assert_eq!(paths.len(), 14);
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        let pixels = preprocessor.decode(&bytes, &Limits::default()).unwrap();
        let wanted = expected(&path);
        assert_eq!(pixels.rgb.len(), wanted.len());
        let differences: Vec<u32> = pixels
            .rgb
            .iter()
            .zip(&wanted)
            .map(|(found, right)| u32::from(found.abs_diff(*right)))
            .collect();
        let count = differences.len() as f64;
        let mean = f64::from(differences.iter().sum::<u32>()) / count;
        let close = differences.iter().filter(|difference| **difference <= 4).count() as f64;
        println!("{}: mean {mean:.3}, within 4: {:.5}", path.display(), close / count);
        assert!(mean <= 1.0, "{}: mean difference {mean}", path.display());
        assert!(close / count >= 0.999, "{}: within 4: {}", path.display(), close / count);
    }
}

#[test]
fn the_source_is_described() {
    let bytes = fs::read(Path::new(FIXTURES).join("cat-exif6.jpg")).unwrap();
    let pixels = clip().decode(&bytes, &Limits::default()).unwrap();
    assert_eq!(pixels.content_type, "image/jpeg");
    assert_eq!((pixels.source_width, pixels.source_height), (300, 451));
}

#[test]
fn normalising_gives_planes() {
    let preprocessor = clip();
    let mut tensor = vec![0.0; 6];
    preprocessor.normalise(&[255, 0, 0, 0, 255, 0], &mut tensor);
    let red = (1.0 - 0.481) / 0.268;
    assert!((tensor[0] - red).abs() < 1e-5, "{tensor:?}");
    assert!((tensor[3] - (1.0 - 0.457) / 0.261).abs() < 1e-5, "{tensor:?}");
}

#[test]
fn files_that_are_not_images_are_refused() {
    assert_eq!(refusal(b""), ErrorKind::EmptyObject);
    assert_eq!(refusal(b"<!DOCTYPE html><html></html>"), ErrorKind::NotAnImage);
    assert_eq!(refusal(b"\xff\xd8\xff"), ErrorKind::CorruptImage);
}

#[test]
fn a_truncated_image_is_refused() {
    for name in
        ["china-640x427.jpg", "astronaut-progressive.jpg", "cat-451x300.png", "cat-cmyk.jpg"]
    {
        let bytes = fs::read(Path::new(FIXTURES).join(name)).unwrap();
        let kind = refusal(&bytes[..bytes.len() * 2 / 3]);
        assert_eq!(kind, ErrorKind::CorruptImage, "{name}");
    }
}

/// libjpeg only warns, wherever a JPEG is cut, and Pillow fills the rest with grey.
#[test]
fn a_jpeg_cut_anywhere_is_refused() {
    for name in ["astronaut-progressive.jpg", "coffee-q50-420.jpg", "cat-exif6.jpg"] {
        let bytes = fs::read(Path::new(FIXTURES).join(name)).unwrap();
        for length in (2..bytes.len()).step_by(709).chain([bytes.len() - 3, bytes.len() - 2]) {
            let kind = refusal(&bytes[..length]);
            // With two bytes left, nothing says JPEG yet.
            let wanted = if length == 2 { ErrorKind::NotAnImage } else { ErrorKind::CorruptImage };
            assert_eq!(kind, wanted, "{name} cut to {length} of {}", bytes.len());
        }
    }
}

/// Stray bytes before a marker are ignored in a whole file, not in a truncated one.
#[test]
fn stray_bytes_in_a_jpeg_do_no_harm_unless_it_is_cut() {
    let good = fs::read(Path::new(FIXTURES).join("china-640x427.jpg")).unwrap();
    let right = clip().decode(&good, &Limits::default()).unwrap().rgb;
    // Behind the first segment, whose length stands at 4, and before the end marker.
    let header = 4 + usize::from(u16::from_be_bytes([good[4], good[5]]));
    for place in [header, good.len() - 2] {
        let mut strayed = good.clone();
        strayed.splice(place..place, [0; 5]);
        let found = clip().decode(&strayed, &Limits::default()).unwrap().rgb;
        let furthest = found.iter().zip(&right).map(|(one, other)| one.abs_diff(*other)).max();
        assert!(furthest <= Some(4), "stray bytes at {place}: {furthest:?}");
        let cut = &strayed[..strayed.len() * 2 / 3];
        assert_eq!(refusal(cut), ErrorKind::CorruptImage, "stray bytes at {place}");
    }
}

/// 60,000 x 1 pixels are few, but resized to a shortest edge of 224 they would be 9 GB.
#[test]
fn a_line_of_pixels_is_decoded_without_growing() {
    for (width, height) in [(60_000, 1), (1, 60_000)] {
        let line = image::RgbImage::from_pixel(width, height, image::Rgb([200, 100, 50]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        line.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let pixels = clip().decode(bytes.get_ref(), &Limits::default()).unwrap();
        assert_eq!(pixels.rgb.len(), 224 * 224 * 3);
        assert!(pixels.rgb.chunks(3).all(|pixel| pixel == [200, 100, 50]));
    }
}

/// A scan of a few bytes makes the decoder process the whole image again.
#[test]
fn a_jpeg_of_more_scans_than_anyone_writes_is_refused() {
    let decode = |scans| {
        let bytes = many_scans::jpeg(64, scans);
        clip().decode(&bytes, &Limits::default())
    };
    let grey = decode(99).unwrap();
    assert!(grey.rgb.iter().all(|value| *value == 128), "with the first scan there are 100");
    let error = decode(100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptImage);
    assert!(error.chain().contains("scans"), "{}", error.chain());
}

#[test]
fn a_png_that_claims_too_many_pixels_is_refused_unread() {
    assert_eq!(refusal(&oversized_png()), ErrorKind::ImageTooLarge);
}

#[test]
fn no_damage_makes_the_decoder_panic() {
    let preprocessor = clip();
    let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
    for path in images().iter().filter(|path| !path.to_string_lossy().contains("4000")) {
        let good = fs::read(path).unwrap();
        for round in 0..8_usize {
            let mut damaged = good.clone();
            for hit in 0..12_usize {
                let place = (round * 7919 + hit * 104_729) % damaged.len().min(4096 << round);
                damaged[place] ^= 1 << (hit % 8);
            }
            if let Ok(pixels) = preprocessor.decode(&damaged, &limits) {
                assert_eq!(pixels.rgb.len(), 224 * 224 * 3);
            }
        }
    }
}

/// The sample photos, as a camera of 12 megapixels would have written them.
fn twelve_megapixels() -> Vec<(String, Vec<u8>)> {
    let enlarged = |path: PathBuf| {
        let photo = image::open(&path).unwrap().into_rgb8();
        let (width, height) =
            if photo.width() >= photo.height() { (4000, 3000) } else { (3000, 4000) };
        let source = ImageRef::new(photo.width(), photo.height(), &photo, PixelType::U8x3).unwrap();
        let mut target = Image::new(width, height, PixelType::U8x3);
        Resizer::new().resize(&source, &mut target, None).unwrap();
        let rgb = RgbImage::from_raw(width, height, target.into_vec()).unwrap();
        (path.display().to_string(), encode(&rgb))
    };
    kit::samples().into_iter().map(enlarged).collect()
}

fn encode(rgb: &RgbImage) -> Vec<u8> {
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let pixels = turbojpeg::Image {
        pixels: rgb.as_raw().as_slice(),
        width,
        pitch: 3 * width,
        height,
        format: PixelFormat::RGB,
    };
    let mut compressor = Compressor::new().unwrap();
    compressor.set_quality(90).unwrap();
    compressor.set_subsamp(Subsamp::Sub2x2).unwrap();
    compressor.compress_to_vec(pixels).unwrap()
}

#[test]
fn the_model_sees_nearly_the_same_in_both_modes_takes_minutes() {
    let path = root("models/tiny");
    let settings = Model { path: path.display().to_string(), ..Model::default() };
    let bundle = Bundle::open(&path).unwrap();
    let mut engine = Engine::load(bundle, &Runtime::default(), &settings, 1).unwrap();
    let exact = engine.preprocessor().clone();
    let fast = exact.clone().in_mode(DecodeMode::Fast);
    let photos = twelve_megapixels();
    assert_eq!(photos.len(), 13);
    let mut different = Vec::new();
    for (name, bytes) in &photos {
        let [exact, fast] =
            [&exact, &fast].map(|mode| mode.decode(bytes, &Limits::default()).unwrap());
        assert_eq!(
            (fast.source_width, fast.source_height),
            (exact.source_width, exact.source_height)
        );
        // Equal bits would mean that both modes decode the same way.
        assert_ne!(exact.rgb, fast.rgb, "{name} was not scaled");
        let [exact, fast] =
            [exact, fast].map(|pixels| engine.caption(&[&pixels.rgb]).unwrap().remove(0));
        let cosine: f32 =
            exact.embedding.iter().zip(&fast.embedding).map(|(one, other)| one * other).sum();
        println!("{name}: cosine {cosine:.5}; {} | {}", exact.text, fast.text);
        assert!(cosine >= 0.999, "{name}: cosine {cosine}");
        if exact.text != fast.text {
            different.push(name);
        }
    }
    // Some captions are near-ties, which any noise of this size changes.
    assert!(different.len() <= 2, "different captions: {different:?}");
}

/// A photo with each of the eight orientations, whose edges are not multiples of eight: partially
/// filled blocks are placed correctly.
#[test]
fn a_scaled_photo_covers_the_area_of_the_whole_one() {
    let photo = image::open(Path::new(FIXTURES).join("china-4000x2669.jpg")).unwrap();
    let plain = encode(&photo.crop_imm(0, 0, 3993, 2665).into_rgb8());
    let (exact, fast) = (clip(), clip().in_mode(DecodeMode::Fast));
    for orientation in 1..=8_u8 {
        // An EXIF block of one entry: the orientation, a short.
        let mut bytes = plain[..2].to_vec();
        bytes.extend_from_slice(b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01");
        bytes.extend_from_slice(&[1, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&plain[2..]);
        let [exact, fast] =
            [&exact, &fast].map(|mode| mode.decode(&bytes, &Limits::default()).unwrap());
        let upright = if orientation < 5 { (3993, 2665) } else { (2665, 3993) };
        assert_eq!((fast.source_width, fast.source_height), upright, "{orientation}");
        assert_ne!(exact.rgb, fast.rgb, "{orientation}: the photo was not scaled");
        let sum: u64 = exact
            .rgb
            .iter()
            .zip(&fast.rgb)
            .map(|(one, other)| u64::from(one.abs_diff(*other)).pow(2))
            .sum();
        let mean = sum as f64 / exact.rgb.len() as f64;
        println!("orientation {orientation}: mean square difference {mean:.3}");
        assert!(mean < MOVED, "{orientation}: mean square difference {mean}");
    }
}

/// More than the mean square difference of a photo and itself shifted by an eighth of a pixel.
const MOVED: f64 = 2.0;

/// Truncated files and stray bytes give the same result in mode `fast`.
#[test]
fn damage_is_found_in_both_modes() {
    let fast = clip().in_mode(DecodeMode::Fast);
    let good = fs::read(Path::new(FIXTURES).join("china-4000x2669.jpg")).unwrap();
    let decode = |bytes: &[u8]| fast.decode(bytes, &Limits::default());
    let cut = decode(&good[..good.len() * 2 / 3]).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::CorruptImage);
    let limits = Limits { max_pixels: 4000 * 2669 - 1, ..Limits::default() };
    let large = fast.decode(&good, &limits).unwrap_err();
    assert_eq!(large.kind(), ErrorKind::ImageTooLarge);
    let mut strayed = good.clone();
    strayed.splice(good.len() - 2..good.len() - 2, [0; 5]);
    assert_eq!(decode(&strayed).unwrap().rgb, decode(&good).unwrap().rgb);
}
