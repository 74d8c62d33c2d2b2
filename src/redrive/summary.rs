//! The counts of a run.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::rebuild::Reason;

/// The counts of one error code.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Counts {
    /// Letters that the filter admits.
    pub chosen: u64,
    /// Admitted letters that an earlier run has put back.
    pub already_redriven: u64,
    /// Letters that this run has put back.
    pub redriven: u64,
}

/// Admitted letters that can't be put back.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct NotRedrivable {
    /// The original was left out of the letter, and is no longer at its source.
    pub gone: u64,
    /// The letter's fields contradict each other or the original.
    pub damaged: u64,
    /// With its new headers the reference would be too large for a message.
    pub too_large: u64,
}

impl NotRedrivable {
    pub(super) fn add(&mut self, reason: Reason) {
        match reason {
            Reason::Gone => self.gone += 1,
            Reason::Damaged => self.damaged += 1,
            Reason::TooLarge => self.too_large += 1,
        }
    }
}

/// The counts of a whole run.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Summary {
    pub dry_run: bool,
    /// Dead letters on the topic.
    pub letters: u64,
    /// Markers of earlier runs.
    pub markers: u64,
    /// Records that are neither letter nor marker.
    pub unreadable: u64,
    /// Letters whose references came from another topic; never put back.
    pub other_topic: u64,
    pub chosen: u64,
    pub already_redriven: u64,
    pub redriven: u64,
    pub not_redrivable: NotRedrivable,
    pub codes: BTreeMap<String, Counts>,
}

impl Summary {
    /// Admitted letters that can't be put back.
    pub fn not_redrivable(&self) -> u64 {
        let NotRedrivable { gone, damaged, too_large } = self.not_redrivable;
        gone + damaged + too_large
    }

    pub(super) fn add_redriven(&mut self, code: &str) {
        self.redriven += 1;
        if let Some(counts) = self.codes.get_mut(code) {
            counts.redriven += 1;
        }
    }
}

/// A line for each code, and one for the whole run.
impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (code, counts) in &self.codes {
            let Counts { chosen, already_redriven, redriven } = counts;
            write!(formatter, "{code:<20} {chosen:>9} chosen {already_redriven:>9} before")?;
            if self.dry_run {
                writeln!(formatter)?;
            } else {
                writeln!(formatter, " {redriven:>9} redriven")?;
            }
        }
        if self.dry_run {
            let left = self.chosen - self.already_redriven;
            writeln!(formatter, "{left} of {} dead letters would be redriven", self.letters)?;
        } else {
            writeln!(
                formatter,
                "redriven {} of {} dead letters; {} were redriven before",
                self.redriven, self.letters, self.already_redriven
            )?;
        }
        let NotRedrivable { gone, damaged, too_large } = self.not_redrivable;
        let troubles = [
            (gone, "not redrivable: the original was left out and is no longer at its source"),
            (damaged, "not redrivable: the letter contradicts itself"),
            (too_large, "not redrivable: too large for a message"),
            (self.other_topic, "from another input topic, not redriven"),
            (self.unreadable, "records are neither dead letter nor marker"),
        ];
        for (count, what) in troubles.into_iter().filter(|(count, _)| *count > 0) {
            writeln!(formatter, "{count} {what}")?;
        }
        Ok(())
    }
}
