//! The workers, each in a slot with a stable transactional id: struck down by faults, and started
//! again as an orchestrator would, whatever they ended of.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kit::process::{Configuration, Worker};
use serde::Serialize;

use super::now;
use super::transactions::Transactions;

/// How long a transaction of the victim is waited for.
const AIM: Duration = Duration::from_secs(10);
/// In which what a frozen worker had sent arrives, and becomes known.
const SETTLE: Duration = Duration::from_millis(200);
/// SIGTERM drains, at most as long as the brokers need to come back.
const TERMINATION: Duration = Duration::from_secs(120);
/// How much of a log is reported.
const LAST_LINES: usize = 8;

/// Events that the workers' logs report.
const SIGNS: [(&str, &str); 10] = [
    ("transactions committed", "\"transaction committed\""),
    ("transactions failed", "\"transaction failed\""),
    ("producers built", "\"transactional producer built\""),
    ("producers built more than once tried", "\"the transactional producer will be built again\""),
    ("partitions assigned", "\"partitions assigned\""),
    ("partitions lost", "\"lost\":true"),
    ("rewinds", "\"rewinding\""),
    ("offsets received twice", "received an offset twice"),
    ("messages polled twice", "a message was polled twice"),
    ("flushes not in time", "was not committed before the revocation"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Up,
    Frozen {
        until: Instant,
    },
    Ending {
        until: Instant,
        comes_back: bool,
    },
    Down {
        until: Instant,
    },
    /// Scaled in, or not out yet.
    Away,
}

/// A worker that ended otherwise than it was asked to.
#[derive(Clone, Debug, Serialize)]
pub struct Exit {
    pub worker: String,
    pub how: String,
    pub last_lines: Vec<String>,
}

struct Slot {
    name: &'static str,
    transactional_id: String,
    configuration: Configuration,
    worker: Option<Worker>,
    condition: Condition,
}

pub struct Workers {
    slots: Vec<Slot>,
    logs: PathBuf,
    pub starts: usize,
    pub exits: Vec<Exit>,
    pub signs: BTreeMap<&'static str, usize>,
}

/// A worker by its place.
pub type Number = usize;

impl Workers {
    /// All are away.
    pub fn new(
        group: &str,
        configurations: Vec<(&'static str, Configuration)>,
        logs: PathBuf,
    ) -> Self {
        let slots = configurations.into_iter().map(|(name, configuration)| Slot {
            name,
            transactional_id: format!("{group}-{name}"),
            configuration,
            worker: None,
            condition: Condition::Away,
        });
        let signs = BTreeMap::new();
        Self { slots: slots.collect(), logs, starts: 0, exits: Vec::new(), signs }
    }

    pub fn condition(&self, number: Number) -> Condition {
        self.slots[number].condition
    }

    pub fn transactional_id(&self, number: Number) -> &str {
        &self.slots[number].transactional_id
    }

    pub fn up(&self) -> Vec<Number> {
        let all = 0..self.slots.len();
        all.filter(|number| self.condition(*number) == Condition::Up).collect()
    }

    pub fn all_are_up_or_away(&self) -> bool {
        let calm = [Condition::Up, Condition::Away];
        self.slots.iter().all(|slot| calm.contains(&slot.condition))
    }

    pub fn start(&mut self, number: Number) {
        let slot = &mut self.slots[number];
        slot.worker = Some(slot.configuration.start());
        slot.condition = Condition::Up;
        self.starts += 1;
    }

    pub fn await_ready(&mut self) {
        for slot in &mut self.slots {
            if slot.condition == Condition::Up {
                slot.worker.as_mut().expect("an upright worker").await_ready();
            }
        }
    }

    /// Freezes a worker, if it can be done while it has a transaction open; since when.
    fn freeze_at_work(&self, number: Number, transactions: &Transactions) -> i64 {
        let (worker, id) = (self.worker(number), self.transactional_id(number));
        let deadline = Instant::now() + AIM;
        loop {
            while !transactions.is_open(id) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            worker.signal("STOP");
            let since = now();
            std::thread::sleep(SETTLE);
            if transactions.is_open(id) || Instant::now() > deadline {
                return since;
            }
            // The transaction was over before the signal came.
            worker.signal("CONT");
        }
    }

    /// SIGKILL, and a new start after `pause`; when it was frozen, and when it was gone.
    pub fn kill(
        &mut self,
        number: Number,
        pause: Duration,
        aim: Option<&Transactions>,
    ) -> (i64, i64) {
        let from = match aim {
            Some(transactions) => self.freeze_at_work(number, transactions),
            None => now(),
        };
        self.worker_mut(number).kill();
        let to = now();
        self.collect(number);
        self.slots[number].condition = Condition::Down { until: Instant::now() + pause };
        (from, to)
    }

    /// SIGTERM; when.
    pub fn terminate(
        &mut self,
        number: Number,
        comes_back: bool,
        aim: Option<&Transactions>,
    ) -> (i64, i64) {
        let since = aim.map(|transactions| self.freeze_at_work(number, transactions));
        self.worker(number).signal("TERM");
        let to = now();
        if since.is_some() {
            self.worker(number).signal("CONT");
        }
        let until = Instant::now() + TERMINATION;
        self.slots[number].condition = Condition::Ending { until, comes_back };
        (since.unwrap_or(to), to)
    }

    /// SIGSTOP for `pause`; when, and when it had certainly not gone on.
    pub fn freeze(
        &mut self,
        number: Number,
        pause: Duration,
        transactions: &Transactions,
    ) -> (i64, i64) {
        let from = self.freeze_at_work(number, transactions);
        let to = now();
        self.slots[number].condition = Condition::Frozen { until: Instant::now() + pause };
        (from, to)
    }

    /// Wakes, ends and restarts the workers that are due, and checks those that ended by themselves.
    pub fn tick(&mut self) {
        let time = Instant::now();
        for number in 0..self.slots.len() {
            match self.condition(number) {
                Condition::Frozen { until } if time >= until => {
                    self.worker(number).signal("CONT");
                    self.slots[number].condition = Condition::Up;
                }
                Condition::Down { until } if time >= until => self.start(number),
                Condition::Up if !self.worker_mut(number).is_running() => {
                    let status = self.worker_mut(number).wait(Duration::ZERO);
                    self.note(number, format!("by itself, {status}"));
                    self.collect(number);
                    let until = time + Duration::from_secs(1);
                    self.slots[number].condition = Condition::Down { until };
                }
                Condition::Ending { until, comes_back } => self.end(number, until, comes_back),
                _ => {}
            }
        }
    }

    fn end(&mut self, number: Number, until: Instant, comes_back: bool) {
        if self.worker_mut(number).is_running() {
            if Instant::now() < until {
                return;
            }
            self.note(number, "not at all after SIGTERM".into());
            self.worker_mut(number).kill();
        } else {
            let status = self.worker_mut(number).wait(Duration::ZERO);
            if !status.success() {
                self.note(number, format!("after SIGTERM, {status}"));
            }
        }
        self.collect(number);
        self.slots[number].condition =
            if comes_back { Condition::Down { until: Instant::now() } } else { Condition::Away };
    }

    /// Ends all of them at once; each that is up must be alive and end well.
    pub fn end_all(&mut self) {
        let up = self.up();
        for &number in &up {
            let alive = self.worker_mut(number).is_running();
            assert!(alive, "a worker is not alive:\n{}", self.worker(number).log());
            self.worker(number).signal("TERM");
        }
        for number in up {
            let status = self.worker_mut(number).wait(TERMINATION);
            assert!(status.success(), "{status}:\n{}", self.worker(number).log());
            self.collect(number);
            self.slots[number].condition = Condition::Away;
        }
    }

    fn note(&mut self, number: Number, how: String) {
        let log = self.worker(number).log();
        let mut last_lines: Vec<String> =
            log.lines().rev().take(LAST_LINES).map(str::to_owned).collect();
        last_lines.reverse();
        let worker = self.slots[number].name.to_owned();
        println!("worker {worker} ended {how}:\n{}", last_lines.join("\n"));
        self.exits.push(Exit { worker, how, last_lines });
    }

    /// Takes from an ended worker's log what is reported, and keeps the log.
    fn collect(&mut self, number: Number) {
        let log = self.worker(number).log();
        for (name, text) in SIGNS {
            *self.signs.entry(name).or_default() += log.matches(text).count();
        }
        fs::create_dir_all(&self.logs).unwrap();
        let name = format!("{}-{}.log", now(), self.slots[number].name);
        fs::write(self.logs.join(name), &log).unwrap();
        self.slots[number].worker = None;
    }

    fn worker(&self, number: Number) -> &Worker {
        self.slots[number].worker.as_ref().expect("a worker that has started")
    }

    fn worker_mut(&mut self, number: Number) -> &mut Worker {
        self.slots[number].worker.as_mut().expect("a worker that has started")
    }
}
