//! Decoding and preprocessing against Pillow and CLIP's own image processor, and against files
//! that are no images.

use std::fs;
use std::path::{Path, PathBuf};

use fusioncap::ErrorKind;
use fusioncap::bundle::{PreprocessorConfig, Size};
use fusioncap::config::Limits;
use fusioncap::image::Preprocessor;

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
fn what_is_no_image_is_refused() {
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

#[test]
fn a_png_that_claims_too_many_pixels_is_refused_unread() {
    let mut bytes = fs::read(Path::new(FIXTURES).join("cat-451x300.png")).unwrap();
    // Width and height stand at the beginning of the header chunk; its checksum follows it.
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let checksum = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(refusal(&bytes), ErrorKind::ImageTooLarge);
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
