//! The result of a run, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::audit::Verdict;
use crate::world::workers::Exit;

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Count {
    pub times: usize,
    /// How many of them, as the coordinators' own records show.
    pub in_open_transaction: usize,
    /// Requests that the object store's trouble met.
    pub requests: u64,
}

/// The faults, by their names.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    pub faults: BTreeMap<&'static str, Count>,
}

impl Tally {
    pub fn times(&self) -> usize {
        self.faults.values().map(|count| count.times).sum()
    }

    pub fn in_open_transaction(&self) -> usize {
        self.faults.values().map(|count| count.in_open_transaction).sum()
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: u64,
    pub references: usize,
    pub tally: Tally,
    pub transactions_committed: usize,
    pub transactions_aborted: usize,
    pub worker_starts: usize,
    /// Events that the workers' logs report.
    pub signs: BTreeMap<&'static str, usize>,
    /// Workers that ended otherwise than they were asked to.
    pub exits: Vec<Exit>,
    /// Sum of the offsets that the group has committed.
    pub committed: i64,
    pub live: Verdict,
    pub at_the_end: Verdict,
    /// The report of `fusioncap verify`.
    pub verify: Option<serde_json::Value>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.references / self.seconds.max(1) as usize;
        writeln!(
            f,
            "seed {}, {} s, {} references, {rate} a second",
            self.seed, self.seconds, self.references
        )?;
        writeln!(f, "{:<28}{:>7}{:>22}", "fault", "times", "in open transactions")?;
        for (name, count) in &self.tally.faults {
            let Count { times, in_open_transaction, requests } = count;
            match requests {
                0 => writeln!(f, "{name:<28}{times:>7}{in_open_transaction:>22}")?,
                _ => writeln!(f, "{name:<28}{times:>7}{requests:>13} requests")?,
            }
        }
        let (times, hits) = (self.tally.times(), self.tally.in_open_transaction());
        writeln!(f, "{:<28}{times:>7}{hits:>22}", "all")?;
        writeln!(
            f,
            "transactions: {} committed, {} aborted; workers were started {} times",
            self.transactions_committed, self.transactions_aborted, self.worker_starts
        )?;
        for (sign, times) in &self.signs {
            writeln!(f, "  {times:>8} {sign}")?;
        }
        writeln!(f, "ended otherwise than asked to: {}", self.exits.len())?;
        for exit in &self.exits {
            writeln!(f, "  {} {}", exit.worker, exit.how)?;
        }
        writeln!(f, "offsets committed: {} of {}", self.committed, self.references)?;
        for (name, verdict) in [("live", &self.live), ("at the end", &self.at_the_end)] {
            writeln!(
                f,
                "{name:<11} {} captions, dead letters {:?}: {} missing, {} duplicated, {} out of \
                 order, {} wrong, {} never asked ({} read again)",
                verdict.captions,
                verdict.dead_letters,
                verdict.missing,
                verdict.duplicated,
                verdict.out_of_order,
                verdict.wrong,
                verdict.never_asked,
                verdict.read_again,
            )?;
            for example in &verdict.examples {
                writeln!(f, "  {example}")?;
            }
        }
        Ok(())
    }
}
