//! Local embeddings for training: a caption's nouns, corrupted as image patches are.
//!
//! Patches miss objects, resemble other objects, or show objects that no caption mentions. So nouns
//! are dropped, swapped for a neighbour, and joined by distractors, and each embedding has its own
//! noise.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};

use super::nouns::Nouns;
use crate::model::local::LocalSettings;

/// Neighbours per noun for swapping.
const NEIGHBOURS: usize = 8;

/// The corpus's nouns in the joint embedding space.
pub struct NounBank {
    /// Unit length, `[nouns, dim]`.
    pub embeddings: Vec<f32>,
    pub dim: usize,
    /// The nouns of each caption.
    by_caption: Vec<Vec<u16>>,
    /// The nearest neighbours of each noun.
    neighbours: Vec<Vec<u16>>,
}

/// The local embeddings of a batch as plain arrays.
pub struct LocalArrays {
    /// `[batch, items, dim]`, zero for padding.
    pub embeddings: Vec<f32>,
    /// `[batch, items]`, true for padding.
    pub padding_mask: Vec<bool>,
    items: usize,
    dim: usize,
}

impl LocalArrays {
    /// Only padding.
    pub fn empty(batch: usize, items: usize, dim: usize) -> Self {
        let cells = batch * items;
        Self { embeddings: vec![0.0; cells * dim], padding_mask: vec![true; cells], items, dim }
    }

    /// Sets the embedding `item` of a row.
    pub fn put(&mut self, row: usize, item: usize, embedding: impl IntoIterator<Item = f32>) {
        let cell = row * self.items + item;
        self.padding_mask[cell] = false;
        let target = &mut self.embeddings[cell * self.dim..(cell + 1) * self.dim];
        target.iter_mut().zip(embedding).for_each(|(entry, value)| *entry = value);
    }
}

impl NounBank {
    /// `embeddings` `[nouns, dim]` are the unit-length embeddings of `nouns.names`.
    pub fn new(nouns: Nouns, embeddings: Vec<f32>, dim: usize) -> Self {
        let neighbours = neighbours(&embeddings, dim);
        Self { embeddings, dim, by_caption: nouns.by_caption, neighbours }
    }

    pub fn len(&self) -> usize {
        self.neighbours.len()
    }

    pub fn is_empty(&self) -> bool {
        self.neighbours.is_empty()
    }

    /// Draws the local embeddings for the captions at `indices`.
    pub fn draw(
        &self,
        indices: &[usize],
        settings: &LocalSettings,
        generator: &mut impl Rng,
    ) -> LocalArrays {
        let mut drawn = LocalArrays::empty(indices.len(), settings.items, self.dim);
        for (row, caption) in indices.iter().enumerate() {
            let shown = self.corrupt(&self.by_caption[*caption], settings, generator);
            for (column, noun) in shown.into_iter().enumerate() {
                let noisy = self.embedding(noun).iter().map(|entry| {
                    let noise: f32 = StandardNormal.sample(generator);
                    entry + settings.sigma * noise
                });
                drawn.put(row, column, noisy);
            }
        }
        drawn
    }

    /// Corrupts `nouns` by dropout, swaps and distractors; at most `settings.items` remain.
    fn corrupt(
        &self,
        nouns: &[u16],
        settings: &LocalSettings,
        generator: &mut impl Rng,
    ) -> Vec<u16> {
        if self.is_empty() || generator.random::<f32>() < settings.empty {
            return Vec::new();
        }
        let mut shown = Vec::with_capacity(settings.items);
        for &noun in nouns {
            if generator.random::<f32>() < settings.dropout {
                continue;
            }
            let mistaken = generator.random::<f32>() < settings.swap;
            shown.push(if mistaken { self.neighbour(noun, generator) } else { noun });
        }
        for _ in 0..generator.random_range(0..=settings.distractors) {
            // Half of the distractors are related to the caption, as in an image.
            let related = generator.random::<bool>().then(|| choose(nouns, generator)).flatten();
            shown.push(match related {
                Some(noun) => self.neighbour(noun, generator),
                None => generator.random_range(0..self.len()) as u16,
            });
        }
        shown.shuffle(generator);
        shown.truncate(settings.items);
        shown
    }

    fn neighbour(&self, noun: u16, generator: &mut impl Rng) -> u16 {
        choose(&self.neighbours[usize::from(noun)], generator).unwrap_or(noun)
    }

    fn embedding(&self, noun: u16) -> &[f32] {
        &self.embeddings[usize::from(noun) * self.dim..(usize::from(noun) + 1) * self.dim]
    }
}

fn choose(nouns: &[u16], generator: &mut impl Rng) -> Option<u16> {
    (!nouns.is_empty()).then(|| nouns[generator.random_range(0..nouns.len())])
}

fn neighbours(embeddings: &[f32], dim: usize) -> Vec<Vec<u16>> {
    let Ok(rows) = ndarray::ArrayView2::from_shape((embeddings.len() / dim, dim), embeddings)
    else {
        return Vec::new();
    };
    let cosines = rows.dot(&rows.t());
    let nearest = |(noun, row): (usize, ndarray::ArrayView1<'_, f32>)| {
        let mut others: Vec<usize> = (0..row.len()).filter(|other| *other != noun).collect();
        others.sort_by(|left, right| row[*right].total_cmp(&row[*left]));
        others.truncate(NEIGHBOURS);
        others.into_iter().map(|other| other as u16).collect()
    };
    cosines.rows().into_iter().enumerate().map(nearest).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::train::settings::Settings;

    const DIM: usize = 4;

    /// Two pairs of similar nouns; one caption with the first noun, one without nouns.
    fn bank() -> NounBank {
        let embeddings = [
            [1.0, 0.0, 0.0, 0.0],
            [0.8, 0.6, 0.0, 0.0],
            [0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.6, 0.8],
        ];
        let nouns = Nouns {
            names: ["cat", "kitten", "bus", "tram"].map(String::from).to_vec(),
            by_caption: vec![vec![0], vec![]],
        };
        NounBank::new(nouns, embeddings.concat(), DIM)
    }

    fn uncorrupted() -> LocalSettings {
        let mut settings = Settings::load(None).unwrap().local;
        settings.items = 3;
        (settings.dropout, settings.swap, settings.empty) = (0.0, 0.0, 0.0);
        (settings.sigma, settings.distractors) = (0.0, 0);
        settings
    }

    #[test]
    fn without_corruption_a_caption_shows_its_nouns() {
        let mut generator = StdRng::seed_from_u64(1);
        let drawn = bank().draw(&[1, 0], &uncorrupted(), &mut generator);
        assert_eq!(drawn.padding_mask, [true, true, true, false, true, true]);
        assert_eq!(drawn.embeddings[3 * DIM..4 * DIM], [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn each_corruption_has_its_effect() {
        let mut generator = StdRng::seed_from_u64(1);
        let (bank, mut settings) = (bank(), uncorrupted());
        assert_eq!(bank.neighbours[2], [3, 0, 1]);
        settings.dropout = 1.0;
        assert!(bank.corrupt(&[0], &settings, &mut generator).is_empty());
        (settings.dropout, settings.swap) = (0.0, 1.0);
        let swapped: Vec<u16> =
            (0..50).flat_map(|_| bank.corrupt(&[0], &settings, &mut generator)).collect();
        assert!(swapped.len() == 50 && !swapped.contains(&0), "{swapped:?}");
        (settings.swap, settings.distractors) = (0.0, 9);
        let longest = (0..50).map(|_| bank.corrupt(&[0], &settings, &mut generator).len()).max();
        assert_eq!(longest, Some(settings.items), "at most settings.items");
        settings.empty = 1.0;
        assert!(bank.corrupt(&[0], &settings, &mut generator).is_empty());
    }
}
