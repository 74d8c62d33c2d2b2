//! The report of a demonstration, and its form on a terminal.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use crate::demo::kafka::{Outcome, OutputRecord};
use crate::demo::photos::Photo;

/// Width of the longest bar in the table of stages, in columns.
const BAR_WIDTH: f64 = 24.0;
/// Longest file name that is not shortened, in characters.
const NAME_WIDTH: usize = 32;

/// One photo and all answers to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    pub photo: Photo,
    pub outcomes: Vec<Outcome>,
}

impl Answered {
    /// Whether there is exactly one caption, and nothing else.
    pub fn is_captioned_once(&self) -> bool {
        matches!(self.outcomes.as_slice(), [Outcome::Caption { .. }])
    }
}

/// The result of one run.
#[derive(Clone, Debug)]
pub struct DemoReport {
    /// Name and version of the model.
    pub model: String,
    /// Digest of the bundle's manifest, which every caption carries.
    pub digest: String,
    /// In the given order.
    pub photos: Vec<Answered>,
    /// Number of answers that belong to no photo of this run.
    pub unexpected: usize,
    /// From the first reference sent to the last answer received.
    pub elapsed: Duration,
    /// Busy time of each stage of the worker, the sum over its threads.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Groups `answers` by photo. The number counts the answers that belong to no photo.
pub fn group_by_photo(photos: Vec<Photo>, answers: Vec<OutputRecord>) -> (Vec<Answered>, usize) {
    let places: HashMap<_, _> =
        photos.iter().enumerate().map(|(index, photo)| (photo.id.clone(), index)).collect();
    let mut grouped: Vec<_> =
        photos.into_iter().map(|photo| Answered { photo, outcomes: Vec::new() }).collect();
    let mut unexpected = 0;
    for answer in answers {
        match places.get(&answer.id).and_then(|index| grouped.get_mut(*index)) {
            Some(answered) => answered.outcomes.push(answer.outcome),
            None => unexpected += 1,
        }
    }
    (grouped, unexpected)
}

impl DemoReport {
    pub fn captioned_count(&self) -> usize {
        self.photos.iter().filter(|answered| answered.is_captioned_once()).count()
    }

    /// Every photo has exactly one caption, and there is no other answer.
    pub fn is_complete(&self) -> bool {
        self.unexpected == 0 && self.captioned_count() == self.photos.len()
    }

    /// `captioned 13 of 13 images in 3.1 s`.
    pub fn headline(&self) -> String {
        let (done, all) = (self.captioned_count(), self.photos.len());
        let seconds = self.elapsed.as_secs_f64();
        format!("captioned {done} of {all} images in {seconds:.1} s")
    }

    pub fn images_per_second(&self) -> f64 {
        self.captioned_count() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    pub fn longest_stage(&self) -> Duration {
        self.stages.iter().map(|(_, busy)| *busy).max().unwrap_or_default()
    }

    /// One line for each photo, the headline, the verdict and the table of stages.
    pub fn text(&self) -> String {
        let mut text = self.lines();
        // Writing to a String can't fail.
        let _ = writeln!(text, "\n{} ({:.1} images/s)", self.headline(), self.images_per_second());
        text.push_str(&self.verdict());
        text.push('\n');
        text.push_str(&self.stage_table());
        text
    }

    fn lines(&self) -> String {
        let names = self.photos.iter().map(|shown| shorten(&shown.photo.name).chars().count());
        let names = names.max().unwrap_or_default();
        let outcomes: Vec<_> = self.photos.iter().map(text_and_score).collect();
        // A reason can be long, so only captions set the width of the column.
        let captions = outcomes.iter().filter(|(_, score)| !score.is_empty());
        let width = captions.map(|(text, _)| text.chars().count()).max().unwrap_or_default();
        let mut lines = String::new();
        for (shown, (text, score)) in self.photos.iter().zip(&outcomes) {
            let line =
                format!("{:<names$}  {text:<width$}  {score:>7}", shorten(&shown.photo.name));
            lines.push_str(line.trim_end());
            lines.push('\n');
        }
        lines
    }

    /// One line: every photo came back exactly once, or the counts of those that did not.
    pub fn verdict(&self) -> String {
        if self.is_complete() {
            return "every photo came back exactly once".into();
        }
        let missing = self.photos.iter().filter(|shown| shown.outcomes.is_empty()).count();
        let repeated = self.photos.iter().filter(|shown| shown.outcomes.len() > 1).count();
        let refused = self.photos.len() - self.captioned_count() - missing - repeated;
        format!(
            "not captioned: {refused}; never came back: {missing}; came back more than once: \
             {repeated}; unexpected answers: {}",
            self.unexpected
        )
    }

    fn stage_table(&self) -> String {
        let name = self.stages.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let longest = self.longest_stage().as_secs_f64().max(f64::EPSILON);
        let mut table = String::from("where the time went (busy time, all threads together):\n");
        for (stage, busy) in &self.stages {
            let seconds = busy.as_secs_f64();
            let columns = (seconds / longest * BAR_WIDTH).round() as usize;
            let bar = "#".repeat(columns);
            let _ = writeln!(
                table,
                "{}",
                format!("  {stage:<name$} {seconds:>7.2} s  {bar}").trim_end()
            );
        }
        table
    }
}

/// The text of a photo's line, and the score, which is empty without a caption.
fn text_and_score(answered: &Answered) -> (String, String) {
    match answered.outcomes.as_slice() {
        [] => ("(nothing came back)".into(), String::new()),
        [Outcome::Caption { caption, score }] => (caption.clone(), format!("{score:.3}")),
        [Outcome::DeadLetter { code, reason }] => (format!("({code}: {reason})"), String::new()),
        several => (format!("(came back {} times)", several.len()), String::new()),
    }
}

/// Shortens a long name to its end, which distinguishes files and shows their type.
fn shorten(name: &str) -> String {
    let letters = name.chars().count();
    if letters <= NAME_WIDTH {
        return name.into();
    }
    let kept: String = name.chars().skip(letters - NAME_WIDTH + 1).collect();
    format!("…{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(number: usize, name: &str) -> Photo {
        let id = format!("{number:04}-{name}");
        Photo { path: name.into(), name: name.into(), id }
    }

    fn caption(id: &str) -> OutputRecord {
        let outcome = Outcome::Caption { caption: "a cat on a bed".into(), score: -1.25 };
        OutputRecord { id: id.into(), outcome }
    }

    fn report(answers: Vec<OutputRecord>) -> DemoReport {
        let photos = vec![photo(1, "cat.jpg"), photo(2, "notes.txt")];
        let (photos, unexpected) = group_by_photo(photos, answers);
        DemoReport {
            model: "tiny 1".into(),
            digest: "sha256:00".into(),
            photos,
            unexpected,
            elapsed: Duration::from_millis(2_000),
            stages: vec![
                ("fetch", Duration::from_millis(500)),
                ("caption", Duration::from_millis(1_500)),
            ],
        }
    }

    #[test]
    fn the_text_is_aligned() {
        let dead = Outcome::DeadLetter { code: "not_an_image".into(), reason: "text".into() };
        let answers = vec![
            caption("0001-cat.jpg"),
            OutputRecord { id: "0002-notes.txt".into(), outcome: dead },
        ];
        let expected = "\
cat.jpg    a cat on a bed   -1.250
notes.txt  (not_an_image: text)

captioned 1 of 2 images in 2.0 s (0.5 images/s)
not captioned: 1; never came back: 0; came back more than once: 0; unexpected answers: 0
where the time went (busy time, all threads together):
  fetch      0.50 s  ########
  caption    1.50 s  ########################
";
        assert_eq!(report(answers).text(), expected);
    }

    #[test]
    fn only_one_caption_each_is_complete() {
        let both = || vec![caption("0001-cat.jpg"), caption("0002-notes.txt")];
        assert!(report(both()).is_complete());
        assert!(report(both()).text().contains("every photo came back exactly once"));

        let missing = report(vec![caption("0001-cat.jpg")]);
        assert!(!missing.is_complete());
        assert!(missing.text().contains("never came back: 1"));

        let mut twice = both();
        twice.push(caption("0001-cat.jpg"));
        assert!(report(twice.clone()).text().contains("came back more than once: 1"));
        assert!(!report(twice).is_complete());

        let mut unexpected = both();
        unexpected.push(caption("0003-dog.jpg"));
        assert!(!report(unexpected).is_complete());
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        let name = format!("{}.jpg", "x".repeat(60));
        let short = shorten(&name);
        assert_eq!(short.chars().count(), NAME_WIDTH);
        assert!(short.starts_with('…') && short.ends_with("x.jpg"));
    }
}
