//! Which dead letters are put back.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::message::DeadLetter;

/// Selects the dead letters to put back. An empty criterion admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub codes: BTreeSet<String>,
    pub ids: BTreeSet<String>,
    /// Letters that failed at this time or later.
    pub since: Option<Timestamp>,
    /// Letters that failed before this time.
    pub until: Option<Timestamp>,
}

impl Filter {
    pub fn admits(&self, letter: &DeadLetter) -> bool {
        let is_in = |set: &BTreeSet<String>, value| set.is_empty() || set.contains(value);
        if !is_in(&self.codes, &letter.code) || !is_in(&self.ids, &letter.id) {
            return false;
        }
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(failed) = letter.failed_at.parse::<Timestamp>() else {
            return false;
        };
        self.since.is_none_or(|since| failed >= since)
            && self.until.is_none_or(|until| failed < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::message::{FailedStage, RawRecord, SourcePosition};

    fn letter(code: ErrorKind, failed_at: &str) -> DeadLetter {
        let source = SourcePosition { topic: "images.in".into(), partition: 0, offset: 7 };
        let error = Error::new(code, "it went wrong");
        let original = RawRecord::default();
        let mut letter =
            DeadLetter::new(&source, 0, None, &error, (FailedStage::Fetch, 1), &original);
        letter.failed_at = failed_at.into();
        letter
    }

    #[test]
    fn every_kind_of_choice_must_hold() {
        let missing = letter(ErrorKind::ObjectNotFound, "2026-11-23T12:00:00.000001Z");
        let filter = |codes: &[ErrorKind], ids: &[&str], since: &str, until: &str| Filter {
            codes: codes.iter().map(|kind| kind.code().to_owned()).collect(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            since: since.parse().ok(),
            until: until.parse().ok(),
        };
        let (found, denied) = (ErrorKind::ObjectNotFound, ErrorKind::AccessDenied);
        let id = missing.id.as_str();
        for (filter, admitted) in [
            (Filter::default(), true),
            (filter(&[found, denied], &[], "", ""), true),
            (filter(&[denied], &[], "", ""), false),
            (filter(&[], &[id, "other"], "", ""), true),
            (filter(&[found], &["other"], "", ""), false),
            (filter(&[], &[], "2026-11-23T12:00:00.000001Z", ""), true),
            (filter(&[], &[], "2026-11-23T12:00:00.000002Z", ""), false),
            (filter(&[], &[], "", "2026-11-23T12:00:00.000001Z"), false),
            (filter(&[], &[], "", "2026-11-23T13:00:00.000002+01:00"), true),
        ] {
            assert_eq!(filter.admits(&missing), admitted, "{filter:?}");
        }
        let undated = letter(found, "yesterday");
        assert!(!filter(&[], &[], "2020-01-01T00:00:00Z", "").admits(&undated));
    }
}
