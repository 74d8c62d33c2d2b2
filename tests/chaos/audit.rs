//! Audits the answers: every committed record by the source offset that it answers.
//!
//! Two readers each keep an audit, the live one and the one at the end. A record is added with its
//! own position in its topic too, so that a reader that goes back (its broker died) is not mistaken
//! for a worker that wrote twice.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

/// The actual or the expected answer to one reference: a caption, or a dead letter with its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Caption,
    DeadLetter(String),
}

/// Partition and offset of a reference.
pub type Source = (i32, i64);

/// A committed record.
#[derive(Clone, Debug)]
pub struct Entry {
    pub topic: usize,
    pub partition: i32,
    pub offset: i64,
    pub source: Source,
    pub answer: Answer,
}

#[derive(Debug, Default)]
pub struct Audit {
    answers: HashMap<Source, Vec<Answer>>,
    /// The last record of each topic and partition.
    read: HashMap<(usize, i32), i64>,
    /// The last source offset of each topic, partition and source partition.
    last: HashMap<(usize, i32, i32), i64>,
    disordered: Vec<String>,
    read_again: usize,
}

/// The errors that an audit found, and its counts. All counts of errors are 0, or the worker has
/// broken its promise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    pub asked: usize,
    pub captions: usize,
    pub dead_letters: BTreeMap<String, usize>,
    pub missing: usize,
    pub duplicated: usize,
    pub out_of_order: usize,
    /// Answered once, by something else than is right.
    pub wrong: usize,
    pub never_asked: usize,
    /// Records that the reader itself read twice; no fault of the worker's.
    pub read_again: usize,
    /// The first of each kind of wrong.
    pub examples: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.missing + self.duplicated + self.out_of_order + self.wrong + self.never_asked == 0
    }
}

impl Audit {
    /// Adds a record. Returns whether it is the first answer to its reference.
    pub fn add(&mut self, entry: Entry) -> bool {
        let place = self.read.entry((entry.topic, entry.partition)).or_insert(-1);
        if entry.offset <= *place {
            self.read_again += 1;
            return false;
        }
        *place = entry.offset;
        let lane = (entry.topic, entry.partition, entry.source.0);
        let last = self.last.entry(lane).or_insert(-1);
        // The same offset again is a duplicate, and counted as that.
        if entry.source.1 < *last {
            let told = format!("{:?} comes after offset {last} in {lane:?}", entry.source);
            self.disordered.push(told);
        }
        *last = entry.source.1;
        let answers = self.answers.entry(entry.source).or_default();
        answers.push(entry.answer);
        answers.len() == 1
    }

    pub fn judge(&self, expected: &HashMap<Source, Answer>) -> Verdict {
        const EXAMPLES: usize = 5;
        let mut verdict = Verdict { asked: expected.len(), ..Verdict::default() };
        verdict.read_again = self.read_again;
        verdict.out_of_order = self.disordered.len();
        let (mut missing, mut duplicated, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for (source, right) in expected {
            match self.answers.get(source).map(Vec::as_slice) {
                None | Some([]) => missing.push(format!("{source:?} is missing")),
                Some([answer]) if answer == right => match answer {
                    Answer::Caption => verdict.captions += 1,
                    Answer::DeadLetter(code) => {
                        *verdict.dead_letters.entry(code.clone()).or_default() += 1;
                    }
                },
                Some([answer]) => wrong.push(format!("{source:?} is {answer:?}, not {right:?}")),
                Some(many) => duplicated.push(format!("{source:?} is answered {many:?}")),
            }
        }
        let unasked = self.answers.keys().filter(|source| !expected.contains_key(source));
        let unasked: Vec<String> =
            unasked.map(|source| format!("{source:?} was never asked")).collect();
        verdict.missing = missing.len();
        verdict.duplicated = duplicated.len();
        verdict.wrong = wrong.len();
        verdict.never_asked = unasked.len();
        for mut kind in [missing, duplicated, wrong, unasked, self.disordered.clone()] {
            kind.truncate(EXAMPLES);
            verdict.examples.extend(kind);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: i64, source: Source, answer: Answer) -> Entry {
        Entry { topic: 0, partition: 0, offset, source, answer }
    }

    fn expected() -> HashMap<Source, Answer> {
        let letter = Answer::DeadLetter("not_an_image".into());
        HashMap::from([
            ((0, 0), Answer::Caption),
            ((0, 1), letter),
            ((0, 2), Answer::Caption),
            ((1, 0), Answer::Caption),
        ])
    }

    fn right() -> Vec<Entry> {
        let letter = Answer::DeadLetter("not_an_image".into());
        vec![
            entry(10, (0, 0), Answer::Caption),
            entry(12, (1, 0), Answer::Caption),
            entry(13, (0, 1), letter),
            entry(15, (0, 2), Answer::Caption),
        ]
    }

    fn judge(entries: Vec<Entry>) -> Verdict {
        let mut audit = Audit::default();
        for entry in entries {
            audit.add(entry);
        }
        audit.judge(&expected())
    }

    #[test]
    fn right_answers_are_clean() {
        let verdict = judge(right());
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.asked, verdict.captions), (4, 3));
        assert_eq!(verdict.dead_letters["not_an_image"], 1);
    }

    #[test]
    fn whatever_is_wrong_is_seen() {
        let missing = judge(right().split_off(1));
        assert_eq!((missing.missing, missing.is_clean()), (1, false));

        let mut twice = right();
        twice.push(entry(16, (0, 2), Answer::Caption));
        let twice = judge(twice);
        assert_eq!((twice.duplicated, twice.out_of_order, twice.is_clean()), (1, 0, false));

        let mut swapped = right();
        (swapped[2].source, swapped[3].source) = ((0, 2), (0, 1));
        let answer = swapped[2].answer.clone();
        swapped[2].answer = swapped[3].answer.clone();
        swapped[3].answer = answer;
        let swapped = judge(swapped);
        assert_eq!((swapped.out_of_order, swapped.duplicated), (1, 0));
        assert!(!swapped.is_clean());

        let mut other = right();
        other[0].answer = Answer::DeadLetter("fetch_unavailable".into());
        let other = judge(other);
        assert_eq!((other.wrong, other.is_clean()), (1, false));
        assert!(other.examples[0].contains("fetch_unavailable"), "{:?}", other.examples);

        let mut unasked = right();
        unasked.push(entry(16, (9, 0), Answer::Caption));
        let unasked = judge(unasked);
        assert_eq!((unasked.never_asked, unasked.is_clean()), (1, false));
    }

    #[test]
    fn a_reader_that_goes_back_doubles_nothing() {
        let mut again = right();
        again.extend(right().split_off(2));
        let again = judge(again);
        assert!(again.is_clean(), "{again:?}");
        assert_eq!(again.read_again, 2);
    }
}
