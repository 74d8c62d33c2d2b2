//! The corpus's frequent nouns, and the nouns of each caption.
//!
//! A Brill tagger (Brill 1992, in `harper-brill`) finds the nouns. Unknown words count as nouns
//! unless they look like verbs. A compound such as "traffic light" counts as one noun if it is
//! frequent, otherwise its last word counts.

use std::collections::HashMap;

use harper_brill::{Tagger, UPOS, brill_tagger};

use crate::model::local::LocalSettings;

/// Maximum words of a compound noun.
const MAX_WORDS: usize = 2;

/// The corpus's frequent nouns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nouns {
    /// Most frequent first.
    pub names: Vec<String>,
    /// The nouns of each caption as sorted, unique indices into `names`.
    pub by_caption: Vec<Vec<u16>>,
}

impl Nouns {
    /// Finds at most `settings.nouns` nouns, each in at least `settings.noun_count` captions.
    pub fn find(captions: &[String], settings: &LocalSettings) -> Self {
        let tagger = brill_tagger();
        let runs: Vec<Vec<Vec<String>>> =
            captions.iter().map(|caption| noun_runs(&*tagger, caption)).collect();
        let mut counts: HashMap<String, usize> = HashMap::new();
        for run in runs.iter().flatten() {
            for name in endings(run) {
                *counts.entry(name).or_default() += 1;
            }
        }
        let mut frequent: Vec<(String, usize)> =
            counts.into_iter().filter(|(_, count)| *count >= settings.noun_count).collect();
        frequent.sort_unstable_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(&right.0)));
        frequent.truncate(settings.nouns.min(usize::from(u16::MAX)));
        let names: Vec<String> = frequent.into_iter().map(|(name, _)| name).collect();
        let by_caption = match_names(&names, &runs);
        Self { names, by_caption }
    }

    /// The known nouns of each of `captions`, as in [`Self::by_caption`].
    pub fn find_in(&self, captions: &[String]) -> Vec<Vec<u16>> {
        let tagger = brill_tagger();
        let runs: Vec<Vec<Vec<String>>> =
            captions.iter().map(|caption| noun_runs(&*tagger, caption)).collect();
        match_names(&self.names, &runs)
    }
}

/// The indices into `names` of each caption's runs of nouns.
fn match_names(names: &[String], captions: &[Vec<Vec<String>>]) -> Vec<Vec<u16>> {
    let indices: HashMap<&str, u16> =
        names.iter().zip(0..).map(|(name, index)| (name.as_str(), index)).collect();
    captions
        .iter()
        .map(|runs| {
            let longest = |run: &Vec<String>| {
                endings(run).into_iter().find_map(|name| indices.get(name.as_str()).copied())
            };
            let mut found: Vec<u16> = runs.iter().filter_map(longest).collect();
            found.sort_unstable();
            found.dedup();
            found
        })
        .collect()
}

/// Runs of adjacent nouns.
fn noun_runs(tagger: &impl Tagger, caption: &str) -> Vec<Vec<String>> {
    let words: Vec<String> = caption
        .split(' ')
        .map(|word| word.trim_matches(|letter: char| !letter.is_alphanumeric()).to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    let tags = tagger.tag_sentence(&words);
    let mut runs = vec![Vec::new()];
    for (word, tag) in words.into_iter().zip(tags) {
        if is_noun(&word, tag) {
            if let Some(run) = runs.last_mut() {
                run.push(word);
            }
        } else {
            runs.push(Vec::new());
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn is_noun(word: &str, tag: Option<UPOS>) -> bool {
    let looks_like_a_verb = word.ends_with("ing") || word.ends_with("ed");
    match tag {
        Some(UPOS::NOUN | UPOS::PROPN) => !word.ends_with("ing"),
        None => !looks_like_a_verb && !word.ends_with("ly"),
        Some(_) => false,
    }
}

/// The compounds at the end of a run, longest first.
fn endings(run: &[String]) -> Vec<String> {
    (run.len().saturating_sub(MAX_WORDS)..run.len()).map(|start| run[start..].join(" ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings::Settings;

    #[test]
    fn frequent_nouns_are_found_in_their_captions() {
        let captions: Vec<String> = [
            "a man waits at a traffic light",
            "a dog sits under the traffic light",
            "a man and a dog walk on the beach",
            "the light of the sun",
        ]
        .map(String::from)
        .to_vec();
        let mut settings = Settings::load(None).unwrap().local;
        settings.noun_count = 2;
        let nouns = Nouns::find(&captions, &settings);
        let mut names = nouns.names.clone();
        names.sort();
        assert_eq!(names, ["dog", "light", "man", "traffic light"]);
        assert_eq!(nouns.names[0], "light", "in three captions");
        let of = |caption: usize| -> Vec<&str> {
            let mut found: Vec<&str> = nouns.by_caption[caption]
                .iter()
                .map(|index| nouns.names[usize::from(*index)].as_str())
                .collect();
            found.sort_unstable();
            found
        };
        assert_eq!(of(0), ["man", "traffic light"]);
        assert_eq!(of(1), ["dog", "traffic light"]);
        assert_eq!(of(3), ["light"]);
    }
}
