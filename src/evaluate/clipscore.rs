//! CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv:2104.08718): the similarity of a caption to
//! its image in the joint space, without and with the references.

use crate::error::Result;
use crate::text_tower::TextTower;

/// Prompt before every embedded text.
const PREFIX: &str = "A photo depicts ";
const WEIGHT: f64 = 2.5;

/// Both scores of each caption.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClipScores {
    pub clip_score: Vec<f64>,
    pub ref_clip_score: Vec<f64>,
}

/// Scores `captions` against the unit-length embeddings `images` and against `references`.
///
/// # Errors
/// `ErrorKind::Runtime` if the text tower fails.
pub fn clip_scores(
    tower: &mut TextTower,
    captions: &[String],
    images: &[&[f32]],
    references: &[Vec<String>],
) -> Result<ClipScores> {
    let mut embed = |texts: Vec<&String>| -> Result<Vec<Vec<f32>>> {
        let prompts: Vec<String> = texts.iter().map(|text| format!("{PREFIX}{text}")).collect();
        let rows = tower.embed(&prompts)?;
        let width = (rows.len() / prompts.len().max(1)).max(1);
        Ok(rows.chunks_exact(width).map(<[f32]>::to_vec).collect())
    };
    let candidates = embed(captions.iter().collect())?;
    let mut reference_rows = embed(references.iter().flatten().collect())?.into_iter();
    let mut scores = ClipScores::default();
    for ((candidate, image), references) in candidates.iter().zip(images).zip(references) {
        let clip_score = WEIGHT * cosine(candidate, image).max(0.0);
        let nearest = reference_rows
            .by_ref()
            .take(references.len())
            .map(|reference| cosine(candidate, &reference))
            .fold(0.0, f64::max);
        scores.clip_score.push(clip_score);
        scores.ref_clip_score.push(harmonic_mean(clip_score, nearest));
    }
    Ok(scores)
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(left, right)| f64::from(left * right)).sum()
}

fn harmonic_mean(left: f64, right: f64) -> f64 {
    if left + right == 0.0 { 0.0 } else { 2.0 * left * right / (left + right) }
}
