//! The costs that a plan adds up, each with its source: measured in this project (docs/performance.md)
//! or published by Amazon. None is assumed.

/// Measured: ms of one core to decode and shrink a JPEG of 500 x 375, in a worker on a machine with
/// a GPU. Megapixels, ms.
const SMALL_JPEG: (f64, f64) = (0.1875, 2.0);
/// Measured: the same for 4000 x 3000, baseline.
const LARGE_JPEG: (f64, f64) = (12.0, 13.5);
/// Measured: ms of one core for everything around the decoding: sockets, fetch, Kafka. 1 to 2 ms
/// with small images, 1.2 with large ones.
pub const OVERHEAD_MS: f64 = 1.5;

/// Published (Amazon S3's performance guidelines): the first byte of a small object comes after
/// 100 to 200 ms.
pub const FIRST_BYTE_SECONDS: f64 = 0.12;
/// Published (the same): one request is served at 85 to 90 MB/s, bytes per second.
pub const CONNECTION_RATE: f64 = 85e6;
/// Published (the same): GETs per second of one prefix.
pub const GETS_PER_PREFIX: f64 = 5_500.0;

/// Measured: memory of an idle worker with `models/tiny`, bytes.
pub const IDLE_BYTES: f64 = 311e6;

/// Returns the ms of one core to decode and shrink an image of `pixels`.
pub fn decode_ms(pixels: f64) -> f64 {
    let slope = (LARGE_JPEG.1 - SMALL_JPEG.1) / (LARGE_JPEG.0 - SMALL_JPEG.0);
    SMALL_JPEG.1 + (pixels / 1e6 - SMALL_JPEG.0) * slope
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_costs_what_was_measured() {
        assert!((decode_ms(187_500.0) - 2.0).abs() < 1e-9);
        assert!((decode_ms(12e6) - 13.5).abs() < 1e-9);
        assert!(decode_ms(1.0) > 0.0);
    }
}
