//! Local embeddings for training from the text tower's token states (MacCap, Qiu et al. 2024),
//! instead of nouns.
//!
//! They are recomputed for each batch: caching those of a whole corpus would fill the disk.

use std::cell::RefCell;

use rand::Rng;
use rand::seq::index;
use rand_distr::{Distribution, StandardNormal};

use super::noun_bank::LocalArrays;
use crate::error::Result;
use crate::model::local::LocalSettings;
use crate::text_tower::TextTower;

/// The captions and the text tower.
pub struct TokenStates {
    tower: RefCell<TextTower>,
    captions: Vec<String>,
    dim: usize,
}

impl TokenStates {
    pub fn new(tower: TextTower, captions: Vec<String>, dim: usize) -> Self {
        Self { tower: RefCell::new(tower), captions, dim }
    }

    /// Draws the local embeddings for the captions at `indices`: random tokens of each caption in
    /// random order, each with its own noise.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the tower fails.
    pub fn draw(
        &self,
        indices: &[usize],
        settings: &LocalSettings,
        generator: &mut impl Rng,
    ) -> Result<LocalArrays> {
        let texts: Vec<&str> = indices.iter().map(|index| self.captions[*index].as_str()).collect();
        let states = self.tower.borrow_mut().token_states(&texts)?;
        let mut drawn = LocalArrays::empty(indices.len(), settings.items, self.dim);
        for (row, states) in states.iter().enumerate() {
            if generator.random::<f32>() < settings.empty {
                continue;
            }
            let tokens: Vec<&[f32]> = states.chunks_exact(self.dim).collect();
            let count = tokens.len().min(settings.items);
            let chosen = index::sample(generator, tokens.len(), count);
            let kept = chosen.iter().filter(|_| generator.random::<f32>() >= settings.dropout);
            let kept: Vec<usize> = kept.collect();
            for (column, token) in kept.into_iter().enumerate() {
                let noisy = tokens[token].iter().map(|entry| {
                    let noise: f32 = StandardNormal.sample(generator);
                    entry + settings.sigma * noise
                });
                drawn.put(row, column, noisy);
            }
        }
        Ok(drawn)
    }
}
