//! Noise: training sees `t + e` instead of a caption's embedding `t`.
//!
//! An image's embedding lies near its caption's, not on it. Training the decoder on embeddings
//! blurred by Gaussian noise as wide as that gap makes it indifferent to the difference (CapDec,
//! Nukrai, Mokady and Globerson 2022, arXiv:2211.00575, with variance 0.016 for CLIP). Here the
//! scale is fixed; FusionCap's noise network, which learns it, takes this module's place.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

/// Adds Gaussian noise of standard deviation `sigma` to every entry of `embeddings`.
pub fn blur(embeddings: &mut [f32], sigma: f32, generator: &mut impl Rng) {
    if sigma == 0.0 {
        return;
    }
    for entry in embeddings {
        let noise: f32 = StandardNormal.sample(generator);
        *entry += sigma * noise;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::blur;

    #[test]
    fn the_noise_has_the_scale_asked_for() {
        let mut embeddings = vec![0.0; 20_000];
        blur(&mut embeddings, 0.5, &mut StdRng::seed_from_u64(1));
        let mean = embeddings.iter().sum::<f32>() / 20_000.0;
        let variance =
            embeddings.iter().map(|entry| (entry - mean).powi(2)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 0.25).abs() < 0.02, "variance {variance}");
    }
}
