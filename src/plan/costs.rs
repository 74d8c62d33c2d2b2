//! What an image costs, each figure with its source. "Measured" is by this project, on one core of
//! a busy two-core machine; "published" is the maker's; "assumed" was neither, and is the first to
//! replace by a measurement. No GPU was measured.

use serde::Serialize;

/// Measured: a baseline JPEG of 500 x 375 to 224 x 224, shrunk as it is decoded. Megapixels, ms.
const SMALL_JPEG: (f64, f64) = (0.1875, 1.03);
/// Measured: the same from 4000 x 3000; decoded whole it takes 52, a progressive one 76.
const LARGE_JPEG: (f64, f64) = (12.0, 17.0);
/// Assumed: HTTP, signature and TLS of one GET, ms of one core.
const GET_MS: f64 = 0.3;
/// Assumed: decryption and copies, ms of one core a megabyte.
const GET_MS_PER_MEGABYTE: f64 = 1.0;
/// Assumed: reading a reference, writing a record, the share of a transaction, ms of one core.
const KAFKA_MS: f64 = 0.05;

/// Published (Amazon S3's performance guidelines): the first byte of a small object comes after
/// 100 to 200 ms.
pub const FIRST_BYTE_SECONDS: f64 = 0.12;
/// Published (the same): one request is served at 85 to 90 MB/s, bytes a second.
pub const CONNECTION_RATE: f64 = 85e6;
/// Published (the same): GETs a second of one prefix.
pub const GETS_PER_PREFIX: f64 = 5_500.0;

/// Measured: one FusionCap decoder of 3 layers, d 256; a step of one beam, FLOP.
pub const DECODER_FLOP: f64 = 2.0 * 4.25e6;
/// Assumed: steps until the beams of a whole batch are done; captions have about 11 tokens.
pub const STEPS: f64 = 20.0;
pub const BEAMS: f64 = 4.0;
/// Assumed: what a step takes on a GPU however little it computes: kernel launches, the copy of
/// the candidates to the host, the choice among them.
pub const STEP_SECONDS: f64 = 0.000_6;

/// Published: PCIe 5.0 with 16 lanes, bytes a second in one direction.
const PCIE: f64 = 64e9;
/// Assumed: the part of it that large copies get.
const PCIE_USE: f64 = 0.8;
/// Measured: fp32 on one core with AVX-512, FLOP a second.
const CORE_FLOPS: f64 = 45e9;
/// Measured: `models/tiny` whole, in ms of one core (93.6 images/s on two).
const TINY_CORE_MS: f64 = 21.4;

/// Measured: a worker with `models/tiny` that has nothing to do, bytes.
pub const IDLE_BYTES: f64 = 311e6;
/// Measured: a transaction of 64 captions, seconds.
pub const COMMIT_SECONDS: f64 = 0.02;

/// ms of one core to decode and shrink `pixels`.
pub fn decode_ms(pixels: f64) -> f64 {
    let slope = (LARGE_JPEG.1 - SMALL_JPEG.1) / (LARGE_JPEG.0 - SMALL_JPEG.0);
    (SMALL_JPEG.1 + (pixels / 1e6 - SMALL_JPEG.0) * slope).max(0.1)
}

/// ms of one core to fetch `bytes` and to answer its reference.
pub fn transport_ms(bytes: f64) -> f64 {
    GET_MS + GET_MS_PER_MEGABYTE * bytes / 1e6 + KAFKA_MS
}

/// A vision tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    #[value(name = "vit-b-32")]
    VitB32,
    #[value(name = "vit-l-14")]
    VitL14,
    Tiny,
}

impl Model {
    /// Multiplications and additions of an image. Published: 4.4 and 81 GMAC at 224 x 224;
    /// EfficientNet-Lite0's 0.4 GMAC scaled from 224 to 320.
    fn vision_flop(self) -> f64 {
        2.0 * match self {
            Self::VitB32 => 4.4e9,
            Self::VitL14 => 81e9,
            Self::Tiny => 0.83e9,
        }
    }

    /// Numbers of the vision tower's input.
    pub fn input(self) -> f64 {
        3.0 * match self {
            Self::VitB32 | Self::VitL14 => 224.0 * 224.0,
            Self::Tiny => 320.0 * 320.0,
        }
    }

    fn flop(self) -> f64 {
        self.vision_flop() + STEPS * BEAMS * DECODER_FLOP
    }

    /// ms of one core where there is no GPU.
    pub fn core_ms(self) -> f64 {
        match self {
            Self::Tiny => TINY_CORE_MS,
            _ => self.flop() / CORE_FLOPS * 1e3,
        }
    }

    /// Seconds that a GPU takes for a batch: the copy, the arithmetic, the decoder's steps.
    pub fn batch_seconds(self, batch: f64, precision: Precision) -> f64 {
        let copied = 4.0 * self.input() / (PCIE * PCIE_USE);
        batch * (copied + self.flop() / precision.flops()) + STEPS * STEP_SECONDS
    }
}

/// What an NVIDIA H100 (SXM) multiplies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// What ONNX Runtime's CUDA provider does with an fp32 graph
    Tf32,
    /// A graph in fp16, or TensorRT's own
    Fp16,
}

/// Assumed: the part of the peak that transformers of this size reach.
const UTILISATION: f64 = 0.375;

impl Precision {
    /// FLOP a second. Published: dense peaks of 494.7 and 989.4 TFLOP/s.
    fn flops(self) -> f64 {
        UTILISATION
            * match self {
                Self::Tf32 => 494.7e12,
                Self::Fp16 => 989.4e12,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_costs_what_was_measured() {
        assert!((decode_ms(187_500.0) - 1.03).abs() < 1e-9);
        assert!((decode_ms(12e6) - 17.0).abs() < 1e-9);
        assert!(decode_ms(1.0) > 0.0);
    }

    #[test]
    fn larger_batches_are_faster_an_image() {
        let each = |batch: f64| Model::VitB32.batch_seconds(batch, Precision::Tf32) / batch;
        assert!(each(256.0) < each(64.0) && each(64.0) < each(8.0));
        let fp16 = Model::VitL14.batch_seconds(64.0, Precision::Fp16);
        assert!(fp16 < Model::VitL14.batch_seconds(64.0, Precision::Tf32));
    }
}
