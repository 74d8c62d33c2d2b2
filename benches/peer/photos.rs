//! Photos of a size: the samples, scaled by the `image` crate and encoded as a camera would.

use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use kit::bucket::Bucket;

const QUALITY: u8 = 88;

/// Puts `count` photos of `width x height` into the bucket, each an object of its own.
pub fn put(bucket: &Bucket, [width, height]: [u32; 2], count: usize) -> Vec<String> {
    let photos: Vec<Vec<u8>> =
        kit::samples().iter().map(|photo| scaled(photo, width, height)).collect();
    let mean = photos.iter().map(Vec::len).sum::<usize>() / photos.len();
    println!("\n{width} x {height}, {:.2} MB each in the mean", mean as f64 / 1e6);
    photos
        .iter()
        .cycle()
        .take(count)
        .enumerate()
        .map(|(number, bytes)| bucket.put(&format!("{width}/{number}.jpg"), bytes))
        .collect()
}

fn scaled(photo: &Path, width: u32, height: u32) -> Vec<u8> {
    let photo = image::open(photo).unwrap();
    let scaled = photo.resize_exact(width, height, FilterType::CatmullRom).into_rgb8();
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&scaled).unwrap();
    bytes
}
