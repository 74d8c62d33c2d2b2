//! A real S3 server with images, and with objects that are no images.

use std::io::Cursor;

use fusioncap::config::S3;
use image::{ImageFormat, Rgb, RgbImage};

use crate::object_store::ObjectStore;

pub const BUCKET: &str = "photos";

pub struct Bucket(ObjectStore);

impl Bucket {
    pub fn start() -> Self {
        Self(ObjectStore::start(BUCKET))
    }

    /// Puts an object; its URI.
    pub fn put(&self, key: &str, bytes: &[u8]) -> String {
        self.0.put(key, bytes);
        uri(key)
    }

    /// With what a worker reaches it.
    pub fn settings(&self) -> &S3 {
        &self.0.settings
    }

    /// The secret that signs requests.
    pub fn secret(&self) -> &str {
        self.settings().secret_access_key.as_ref().unwrap().reveal()
    }
}

pub fn uri(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

/// A small picture that no other number gives.
pub fn picture(number: u32) -> Vec<u8> {
    let (hue, shape) = (number.wrapping_mul(2_654_435_761), number % 7 + 1);
    let image = RgbImage::from_fn(64, 48, |x, y| {
        let stripe = ((x * shape + y * (number % 5)) % 64) as u8 * 4;
        Rgb([stripe ^ (hue >> 24) as u8, (y * 5) as u8 ^ (hue >> 16) as u8, (hue >> 8) as u8])
    });
    encode(&image, ImageFormat::Png)
}

/// A JPEG whose second half is missing.
pub fn truncated_jpeg() -> Vec<u8> {
    let image = RgbImage::from_fn(256, 256, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
    let mut bytes = encode(&image, ImageFormat::Jpeg);
    bytes.truncate(bytes.len() / 2);
    bytes
}

/// A PNG whose header claims 60,000 x 60,000 pixels.
pub fn oversized_png() -> Vec<u8> {
    let mut bytes = picture(0);
    // Width and height stand at the beginning of the header chunk; its checksum follows it.
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let checksum = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}
