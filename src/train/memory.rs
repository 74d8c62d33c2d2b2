//! Builds the projection's memory from the corpus's embeddings.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

use crate::model::projection::{MemoryKind, ProjectionSettings};

/// Captions per centre for k-means.
const SAMPLES_PER_CENTRE: usize = 12;
const ITERATIONS: usize = 8;

/// Unit-length rows `[memory_size, dim]` from `embeddings` `[captions, dim]`, or fewer rows if there
/// are fewer captions.
pub fn build(embeddings: &[f32], dim: usize, settings: &ProjectionSettings, seed: u64) -> Vec<f32> {
    let captions = embeddings.len() / dim;
    let size = settings.memory_size.min(captions);
    let mut generator = StdRng::seed_from_u64(seed);
    match settings.memory {
        MemoryKind::Sampled => sample(embeddings, dim, size, &mut generator),
        MemoryKind::Clustered => {
            let seen = captions.min(size * SAMPLES_PER_CENTRE);
            let points = sample(embeddings, dim, seen, &mut generator);
            let centres = sample(&points, dim, size, &mut generator);
            cluster(&points, centres, dim)
        }
    }
}

/// Draws `count` rows without replacement, in their order.
fn sample(rows: &[f32], dim: usize, count: usize, generator: &mut impl Rng) -> Vec<f32> {
    let mut chosen = index::sample(generator, rows.len() / dim, count).into_vec();
    chosen.sort_unstable();
    chosen.iter().flat_map(|row| &rows[row * dim..(row + 1) * dim]).copied().collect()
}

/// Spherical k-means (Dhillon and Modha 2001): each point is assigned to the centre with the largest
/// cosine; each centre becomes the normalised sum of its points.
fn cluster(points: &[f32], mut centres: Vec<f32>, dim: usize) -> Vec<f32> {
    for _ in 0..ITERATIONS {
        let mut sums = vec![0.0_f32; centres.len()];
        for (point, nearest) in points.chunks_exact(dim).zip(nearest(points, &centres, dim)) {
            for (sum, entry) in sums[nearest * dim..(nearest + 1) * dim].iter_mut().zip(point) {
                *sum += entry;
            }
        }
        for (centre, sum) in centres.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)) {
            let length = sum.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
            // A centre without points does not move.
            if length > 1e-6 {
                centre.iter_mut().zip(sum).for_each(|(entry, sum)| *entry = sum / length);
            }
        }
    }
    centres
}

/// The index of the centre with the largest cosine, per point.
fn nearest(points: &[f32], centres: &[f32], dim: usize) -> Vec<usize> {
    const BLOCK: usize = 1024;
    let rows = |values: &[f32]| {
        ndarray::ArrayView2::from_shape((values.len() / dim, dim), values)
            .map(|view| view.to_owned())
            .unwrap_or_default()
    };
    let columns = rows(centres).reversed_axes();
    let largest = |row: ndarray::ArrayView1<'_, f32>| {
        let best = row.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
        best.map_or(0, |(index, _)| index)
    };
    points
        .chunks(BLOCK * dim)
        .flat_map(|block| {
            let cosines = rows(block).dot(&columns);
            cosines.rows().into_iter().map(largest).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings::Settings;

    /// Rows around three directions of three.
    fn embeddings() -> Vec<f32> {
        (0..300)
            .flat_map(|row: usize| {
                let wobble = (row as f32).sin() * 0.1;
                let mut entries = [wobble, -wobble, wobble / 2.0];
                entries[row % 3] = 1.0;
                let length = entries.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
                entries.map(|entry| entry / length)
            })
            .collect()
    }

    #[test]
    fn a_sample_consists_of_captions() {
        let (rows, mut settings) = (embeddings(), Settings::load(None).unwrap().projection);
        settings.memory = MemoryKind::Sampled;
        settings.memory_size = 50;
        let memory = build(&rows, 3, &settings, 1);
        assert_eq!(memory.len(), 150);
        let known = |row: &[f32]| rows.chunks_exact(3).any(|other| other == row);
        assert!(memory.chunks_exact(3).all(known));
        settings.memory_size = 1_000;
        assert_eq!(build(&rows, 3, &settings, 1), rows, "all captions");
    }

    #[test]
    fn centres_move_to_the_clusters() {
        let rows = embeddings();
        // A centre near each direction moves onto it.
        let first = [[0.8, 0.6, 0.0], [0.0, 0.8, 0.6], [0.6, 0.0, 0.8]].concat();
        let centres = cluster(&rows, first, 3);
        for (place, centre) in centres.chunks_exact(3).enumerate() {
            assert!(centre[place] > 0.99, "{centres:?}");
            let length: f32 = centre.iter().map(|entry| entry * entry).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
    }
}
