//! Confidence intervals: percentile intervals by resampling the images (Efron 1979), and paired
//! comparison of two captioners on the same images (Koehn 2004).

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Share of the resampled values inside an interval.
const CONFIDENCE: f64 = 0.95;

/// Draws images with replacement, reproducibly for a seed.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    pub resamples: usize,
    pub seed: u64,
}

/// A statistic with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    /// The 95 % interval.
    pub low: f64,
    pub high: f64,
}

/// The difference of two captioners, with its significance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub estimate: Estimate,
    /// Two-sided p value: twice the share of resamples in which the difference has the other sign.
    pub p: f64,
}

impl Bootstrap {
    /// `statistic`, a function of image indices, over all `count` images, with its interval.
    pub fn estimate(&self, count: usize, statistic: impl Fn(&[usize]) -> f64) -> Estimate {
        let whole: Vec<usize> = (0..count).collect();
        let values = self.resampled_values(count, &statistic);
        Estimate { value: statistic(&whole), ..interval(&values) }
    }

    /// `difference`, a function of image indices, over all `count` images, with its interval and p
    /// value.
    pub fn compare(&self, count: usize, difference: impl Fn(&[usize]) -> f64) -> Difference {
        let whole: Vec<usize> = (0..count).collect();
        let value = difference(&whole);
        let values = self.resampled_values(count, &difference);
        let opposite =
            values.iter().filter(|resampled| **resampled * value.signum() <= 0.0).count();
        let p = (2.0 * opposite as f64 / values.len().max(1) as f64).min(1.0);
        Difference { estimate: Estimate { value, ..interval(&values) }, p }
    }

    /// The statistic of each resample, in ascending order.
    fn resampled_values(&self, count: usize, statistic: &impl Fn(&[usize]) -> f64) -> Vec<f64> {
        let mut generator = StdRng::seed_from_u64(self.seed);
        let mut values: Vec<f64> = (0..self.resamples)
            .map(|_| {
                let drawn: Vec<usize> =
                    (0..count).map(|_| generator.random_range(0..count)).collect();
                statistic(&drawn)
            })
            .collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

fn interval(values: &[f64]) -> Estimate {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |share: f64| {
        let index = (share * values.len().saturating_sub(1) as f64).round() as usize;
        values.get(index).copied().unwrap_or(f64::NAN)
    };
    Estimate { value: f64::NAN, low: at(tail), high: at(1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 2_000, seed: 7 };

    fn mean(values: &[f64]) -> impl Fn(&[usize]) -> f64 + '_ {
        |indices| indices.iter().map(|index| values[*index]).sum::<f64>() / indices.len() as f64
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_its_standard_error() {
        let values: Vec<f64> = (0..400).map(|index| f64::from(index % 2)).collect();
        let estimate = BOOTSTRAP.estimate(400, mean(&values));
        assert_eq!(estimate.value, 0.5);
        // 1.96 standard errors of 0.025.
        assert!((estimate.high - 0.549).abs() < 0.006, "{estimate:?}");
        assert!((estimate.low - 0.451).abs() < 0.006, "{estimate:?}");
        assert_eq!(BOOTSTRAP.estimate(400, mean(&values)), estimate, "same seed, same interval");
    }

    #[test]
    fn the_p_value_separates_differences_from_chance() {
        let sure = vec![0.1; 50];
        assert_eq!(BOOTSTRAP.compare(50, mean(&sure)).p, 0.0);
        let none = vec![0.0; 50];
        assert_eq!(BOOTSTRAP.compare(50, mean(&none)).p, 1.0);
        let unsure: Vec<f64> =
            (0..50).map(|index| if index % 2 == 0 { 1.0 } else { -0.9 }).collect();
        assert!(BOOTSTRAP.compare(50, mean(&unsure)).p > 0.3);
    }
}
