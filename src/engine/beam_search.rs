//! Beam search over one batch, without the model: the live beams, their tokens and the finished
//! captions. The decoder graph scores candidates and [`BeamSearch`] selects among them.
//!
//! Row `image * width + beam` of a decoder step is beam `beam` of image `image`. Rows after those
//! of the images are padding and are ignored.
//!
//! The rules are those of Hugging Face's beam search with `early_stopping=False`, with one
//! difference: a caption that reaches the length limit is used only if the image has no finished
//! caption.

use crate::bundle::{GenerationConfig, ModelConfig};

/// Log-probability of a beam that does not exist: too low to be selected, and finite, since
/// log-probabilities are added to it.
const NO_BEAM: f32 = -1e9;

/// A finished caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Tokens without the begin and end tokens.
    pub tokens: Vec<i64>,
    /// Sum of the tokens' log-probabilities, including that of the end token.
    pub log_probability: f32,
    /// Number of tokens in the sum.
    pub length: usize,
}

impl Hypothesis {
    /// Mean log-probability of a token.
    pub fn mean(&self) -> f32 {
        self.log_probability / self.length.max(1) as f32
    }

    /// The log-probability divided by the length to the power of `length_penalty`.
    fn normalized_score(&self, length_penalty: f32) -> f32 {
        self.log_probability / (self.length.max(1) as f32).powf(length_penalty)
    }
}

/// The best continuations of one image's beams, in descending order of score.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Cumulative log-probabilities.
    pub scores: &'a [f32],
    pub tokens: &'a [i64],
    /// The beam that each candidate continues.
    pub parents: &'a [i64],
}

#[derive(Clone, Debug)]
struct Beam {
    tokens: Vec<i64>,
    score: f32,
    /// The beam of the previous step that this one continues.
    parent: usize,
}

impl Beam {
    fn last_token(&self) -> Option<i64> {
        self.tokens.last().copied()
    }
}

#[derive(Debug, Default)]
struct Image {
    /// Best first.
    live: Vec<Beam>,
    /// At most one per beam, best first.
    finished: Vec<Hypothesis>,
    done: bool,
}

/// The state of the search for one batch.
///
/// An image whose caption is decided leaves the batch: it has no rows in later steps.
pub struct BeamSearch<'a> {
    model: &'a ModelConfig,
    settings: &'a GenerationConfig,
    images: Vec<Image>,
    /// The images of the next step, in the order of its rows.
    active: Vec<Active>,
    steps: usize,
}

/// An image whose caption is not decided.
#[derive(Clone, Copy, Debug)]
struct Active {
    image: usize,
    /// Its index among the images of the previous step.
    previous: usize,
}

impl<'a> BeamSearch<'a> {
    /// Starts the search for the captions of `images` images.
    pub fn new(model: &'a ModelConfig, settings: &'a GenerationConfig, images: usize) -> Self {
        let active = (0..images).map(|image| Active { image, previous: image }).collect();
        let images = (0..images).map(|_| Image::default()).collect();
        Self { model, settings, images, active, steps: 0 }
    }

    /// Whether every image has its caption.
    pub fn is_done(&self) -> bool {
        let longest = self.settings.max_new_tokens.min(self.model.max_length.saturating_sub(1));
        self.steps >= longest || self.active.is_empty()
    }

    /// Applies the candidates of one step, one entry for each of its images.
    pub fn advance<'c>(&mut self, candidates: impl Iterator<Item = Candidates<'c>>) {
        self.steps += 1;
        for (active, candidates) in self.active.iter().zip(candidates) {
            if let Some(image) = self.images.get_mut(active.image) {
                image.advance(candidates, self.model, self.settings, self.steps);
            }
        }
        let undecided =
            self.active.iter().enumerate().filter(|(_, active)| {
                self.images.get(active.image).is_some_and(|image| !image.done)
            });
        self.active =
            undecided.map(|(previous, active)| Active { image: active.image, previous }).collect();
    }

    /// The last token of each row.
    pub fn last_tokens(&self) -> Vec<i64> {
        let pad = self.model.pad_token_id;
        self.rows().map(|(_, beam)| beam.and_then(Beam::last_token).unwrap_or(pad)).collect()
    }

    /// The score of each row.
    pub fn scores(&self) -> Vec<f32> {
        self.rows().map(|(_, beam)| beam.map_or(NO_BEAM, |found| found.score)).collect()
    }

    /// The previous step's row that each row continues; that step had `width` rows per image.
    pub fn parents(&self, width: usize) -> Vec<i64> {
        let row = |(previous, beam): (usize, Option<&Beam>)| {
            (previous * width + beam.map_or(0, |found| found.parent)) as i64
        };
        self.rows().map(row).collect()
    }

    /// `count` banned tokens for each row: the special tokens, and those that would repeat an
    /// n-gram.
    pub fn banned(&self, count: usize) -> Vec<i64> {
        let rows = self.active.len() * self.settings.num_beams;
        let mut banned = vec![self.model.pad_token_id; rows * count];
        for (ids, (_, beam)) in banned.chunks_exact_mut(count).zip(self.rows()) {
            let repeating = beam
                .map(|found| repeating_tokens(&found.tokens, self.settings.no_repeat_ngram_size));
            let all =
                std::iter::once(self.model.bos_token_id).chain(repeating.into_iter().flatten());
            for (slot, id) in ids.iter_mut().zip(all) {
                *slot = id;
            }
        }
        banned
    }

    /// For each row of the next step, its image's index in the previous step and its beam. An
    /// image may have fewer beams than rows.
    fn rows(&self) -> impl Iterator<Item = (usize, Option<&Beam>)> {
        let beams = self.settings.num_beams;
        self.active.iter().flat_map(move |active| {
            let live = self.images.get(active.image).map(|image| image.live.as_slice());
            let live = live.unwrap_or_default();
            (0..beams).map(move |beam| (active.previous, live.get(beam)))
        })
    }

    /// The best caption of each image; empty if the decoder found none.
    pub fn finish(self) -> Vec<Hypothesis> {
        self.images.into_iter().map(Image::best_hypothesis).collect()
    }
}

impl Image {
    fn advance(
        &mut self,
        candidates: Candidates<'_>,
        model: &ModelConfig,
        settings: &GenerationConfig,
        length: usize,
    ) {
        let width = settings.num_beams;
        let mut next: Vec<Beam> = Vec::with_capacity(width);
        let Candidates { scores, tokens, parents } = candidates;
        let continuations = scores.iter().zip(tokens).zip(parents);
        for (rank, ((score, token), parent)) in continuations.enumerate() {
            // Also false for NaN.
            let possible = *score > NO_BEAM / 2.0;
            if !possible || next.len() == width {
                break;
            }
            let parent = usize::try_from(*parent).unwrap_or(0);
            let so_far =
                self.live.get(parent).map(|beam| beam.tokens.as_slice()).unwrap_or_default();
            if *token == model.eos_token_id {
                // An end token ranked below the beams would win only because it is short.
                if rank < width {
                    let tokens = so_far.to_vec();
                    let hypothesis = Hypothesis { tokens, log_probability: *score, length };
                    self.insert_finished(hypothesis, settings);
                }
                continue;
            }
            let tokens = so_far.iter().chain([token]).copied().collect();
            next.push(Beam { tokens, score: *score, parent });
        }
        self.live = next;
        self.done = self.live.is_empty() || self.is_decided(settings, length);
    }

    /// Inserts a finished caption by score, after equal scores, and keeps at most one per beam.
    fn insert_finished(&mut self, hypothesis: Hypothesis, settings: &GenerationConfig) {
        let penalty = settings.length_penalty;
        let score = hypothesis.normalized_score(penalty);
        let index = self.finished.partition_point(|other| other.normalized_score(penalty) >= score);
        self.finished.insert(index, hypothesis);
        self.finished.truncate(settings.num_beams);
    }

    /// Whether no live beam has a better score than the worst finished caption.
    fn is_decided(&self, settings: &GenerationConfig, length: usize) -> bool {
        if self.finished.len() < settings.num_beams {
            return false;
        }
        let penalty = settings.length_penalty;
        let (Some(worst), Some(best_live)) = (self.finished.last(), self.live.first()) else {
            return true;
        };
        best_live.score / (length as f32).powf(penalty) <= worst.normalized_score(penalty)
    }

    fn best_hypothesis(self) -> Hypothesis {
        let unfinished = |beam: Beam| Hypothesis {
            length: beam.tokens.len(),
            log_probability: beam.score,
            tokens: beam.tokens,
        };
        let empty = Hypothesis { tokens: Vec::new(), log_probability: 0.0, length: 0 };
        let finished = self.finished.into_iter().next();
        finished.or_else(|| self.live.into_iter().next().map(unfinished)).unwrap_or(empty)
    }
}

/// The tokens that would repeat an n-gram of `tokens`.
fn repeating_tokens(tokens: &[i64], size: usize) -> Vec<i64> {
    if size == 0 || tokens.len() < size {
        return Vec::new();
    }
    let ending = &tokens[tokens.len() + 1 - size..];
    tokens
        .windows(size)
        .filter(|window| window[..size - 1] == *ending)
        .map(|window| window[size - 1])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: i64 = 2;

    fn model() -> ModelConfig {
        ModelConfig {
            model_type: "fusioncap".into(),
            name: "test".into(),
            version: "1".into(),
            embedding_dim: 4,
            num_patches: 1,
            prefix_length: 1,
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            vocab_size: 10,
            max_length: 8,
            bos_token_id: 1,
            eos_token_id: EOS,
            pad_token_id: 0,
            num_candidates: 4,
            text_max_length: None,
            variant: None,
        }
    }

    fn settings(num_beams: usize, length_penalty: f32) -> GenerationConfig {
        GenerationConfig { num_beams, max_new_tokens: 6, length_penalty, no_repeat_ngram_size: 2 }
    }

    fn step(search: &mut BeamSearch<'_>, scores: &[f32], tokens: &[i64], parents: &[i64]) {
        search.advance(std::iter::once(Candidates { scores, tokens, parents }));
    }

    #[test]
    fn the_best_finished_caption_wins() {
        let (model, settings) = (model(), settings(2, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 1);
        step(&mut search, &[-1.0, -1.5, -3.0], &[5, 6, 7], &[0, 0, 0]);
        assert_eq!(search.last_tokens(), [5, 6]);
        step(&mut search, &[-1.2, -1.4, -1.6, -2.0], &[EOS, 8, EOS, 9], &[0, 1, 1, 0]);
        assert_eq!(search.parents(2), [1, 0]);
        assert!(!search.is_done());
        step(&mut search, &[-4.0, -5.0, -6.0], &[EOS, EOS, 3], &[0, 1, 1]);
        let caption = search.finish().remove(0);
        assert_eq!(caption.tokens, [5]);
        assert_eq!((caption.log_probability, caption.length), (-1.2, 2));
    }

    #[test]
    fn the_search_ends_when_no_beam_can_overtake() {
        let (model, settings) = (model(), settings(1, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 1);
        step(&mut search, &[-0.1, -4.0], &[EOS, 5], &[0, 0]);
        assert!(search.is_done());
    }

    #[test]
    fn an_unfinished_caption_is_better_than_none() {
        let (model, settings) = (model(), settings(1, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 1);
        while !search.is_done() {
            step(&mut search, &[-1.0], &[5], &[0]);
        }
        assert_eq!(search.finish()[0].tokens, [5; 6]);
    }

    #[test]
    fn the_worst_finished_caption_beyond_the_beams_is_dropped() {
        let (model, settings) = (model(), settings(2, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 1);
        step(&mut search, &[-1.0, -1.5], &[5, 6], &[0, 0]);
        step(&mut search, &[-1.2, -8.0, -9.0], &[8, EOS, 9], &[0, 1, 1]);
        step(&mut search, &[-1.3, -9.0, -9.3], &[3, EOS, 4], &[0, 1, 1]);
        assert!(!search.is_done());
        // The finished score -8 / 2, -9 / 3 and now -1.6 / 4; the live -14 / 4 beats only -8 / 2.
        step(&mut search, &[-1.6, -14.0, -15.0], &[EOS, 4, 5], &[0, 0, 1]);
        assert!(search.is_done());
        assert_eq!(search.finish()[0].tokens, [5, 8, 3]);
    }

    #[test]
    fn a_long_caption_is_preferred_as_far_as_the_penalty_says() {
        let (model, long, short) = (model(), settings(2, 1.0), settings(2, 0.0));
        let run = |settings: &GenerationConfig| {
            let mut search = BeamSearch::new(&model, settings, 1);
            step(&mut search, &[-1.0, -1.1], &[5, 6], &[0, 0]);
            step(&mut search, &[-1.2, -1.4, -9.0], &[EOS, 8, 9], &[0, 1, 1]);
            step(&mut search, &[-1.5, -8.0, -9.0], &[EOS, 3, 4], &[0, 0, 1]);
            search.finish().remove(0).tokens
        };
        assert_eq!(run(&long), [6, 8]);
        assert_eq!(run(&short), [5]);
    }

    #[test]
    fn nan_scores_give_an_empty_caption() {
        let (model, settings) = (model(), settings(2, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 1);
        step(&mut search, &[f32::NAN, f32::NAN], &[5, 6], &[0, 0]);
        assert!(search.is_done());
        let caption = search.finish().remove(0);
        assert!(caption.tokens.is_empty());
        assert_eq!(caption.mean(), 0.0);
    }

    #[test]
    fn a_repeated_n_gram_is_banned() {
        assert_eq!(repeating_tokens(&[3, 4, 3], 2), [4]);
        assert_eq!(repeating_tokens(&[3, 4, 5, 3, 4], 3), [5]);
        assert!(repeating_tokens(&[3, 4], 0).is_empty());
        assert_eq!(repeating_tokens(&[3, 4], 1), [3, 4]);
    }

    #[test]
    fn beams_that_are_missing_never_count() {
        let (model, settings) = (model(), settings(2, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 1);
        step(&mut search, &[-1.0], &[5], &[0]);
        assert_eq!(search.last_tokens(), [5, 0]);
        assert_eq!(search.scores(), [-1.0, NO_BEAM]);
        assert_eq!(search.parents(1), [0, 0]);
    }

    #[test]
    fn a_finished_image_leaves_and_the_others_keep_their_beams() {
        let (model, settings) = (model(), settings(1, 1.0));
        let mut search = BeamSearch::new(&model, &settings, 3);
        let found = |tokens: [i64; 3]| tokens.map(|token| ([-1.0, -2.0], [token, 9], [0, 0]));
        let advance = |search: &mut BeamSearch<'_>, tokens: [i64; 3]| {
            let found = found(tokens);
            search.advance(found.iter().map(|(scores, tokens, parents)| Candidates {
                scores,
                tokens,
                parents,
            }));
        };
        advance(&mut search, [5, EOS, 6]);
        assert_eq!(search.last_tokens(), [5, 6]);
        assert_eq!(search.parents(1), [0, 2]);
        advance(&mut search, [7, 8, EOS]);
        assert_eq!(search.last_tokens(), [7, 8]);
        // Indices in the previous step, which the second image had left.
        assert_eq!(search.parents(1), [0, 1]);
        let captions = search.finish();
        let tokens: Vec<&[i64]> = captions.iter().map(|found| found.tokens.as_slice()).collect();
        assert_eq!(tokens, [[5, 7].as_slice(), &[], &[6, 8]]);
    }
}
