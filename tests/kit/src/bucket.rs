//! A bucket for images on a real S3 server, and the images, sound and damaged, that tests put there.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

use crate::object_store::{Access, ObjectStore};

/// The name of the bucket.
pub const BUCKET: &str = "photos";

/// The bucket [`BUCKET`] on a server of its own, or on the running one.
pub struct Bucket(ObjectStore);

impl Bucket {
    /// Starts the server. The caller must be on a multi-threaded runtime.
    pub fn start() -> Self {
        Self(ObjectStore::start(BUCKET))
    }

    /// Puts an object and returns its URI.
    pub fn put(&self, key: &str, bytes: &[u8]) -> String {
        self.0.put(key, bytes);
        uri(key)
    }

    /// The ETag of an object, as the server sends it: in quotes.
    pub fn etag(&self, key: &str) -> String {
        self.0.etag(key)
    }

    /// How a worker reaches the server.
    pub fn access(&self) -> &Access {
        self.0.access()
    }

    /// The secret that signs requests to the server.
    pub fn secret(&self) -> &str {
        &self.access().secret_access_key
    }
}

/// The URI of the object with this key.
pub fn uri(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

/// A PNG of 64 x 48 pixels that differs from the picture of every other number.
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
    // The header chunk begins with width and height, and its checksum follows it.
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
