//! The commit protocol against a model of Kafka, on random schedules.
//!
//! `broker` is the model: logs, offsets, the group, transactions, and end-of-transaction requests
//! that arrive late, twice or never. `worker` drives the real [`Assignment`](super::assignment),
//! ledger and [`Protocol`](super::Protocol) as `consume`, `rebalance` and `publish` do, cut into
//! steps that interleave freely with those of the other workers. After each schedule the faults end, and
//! everything must have been answered.
//!
//! At each commit the model checks the conditions of exactly once: the records that become visible are
//! those of the offsets from the last committed to the newly committed one, in order, and nothing
//! else. The same schedules find each of a list of deliberate mistakes ([`Mistake`]).
//!
//! `FUSIONCAP_TEST_SCHEDULES` is their number (20,000 by default); `make simulate` runs a million.

mod broker;
mod worker;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use broker::{Broker, Candidate, Violation};
use worker::Worker;

const PARTITIONS: usize = 3;
const WORKERS: usize = 3;
/// Steps with faults.
const STEPS: usize = 200;
/// Steps without any, in which the rest must be answered.
const HEALING: usize = 20_000;

/// A rule of the protocol that a driver breaks, to show that the checks would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The producer goes on after an unknown outcome.
    KeepsProducer,
    /// Committed offsets are read that a pending transaction may still move.
    ReadsUnstable,
    /// Work in flight survives a failed transaction.
    KeepsWork,
    /// The position is committed, not the finished prefix.
    CommitsPosition,
    /// The work of lost and revoked partitions is committed with the newest group metadata.
    IgnoresOwnership,
    /// A rewind of one partition throws away what others have polled.
    ThrowsAllAway,
    /// A partition whose offsets went back keeps its guards: the publisher is not told.
    KeepsGuards,
}

/// Counts of events, over all schedules. Each event must have happened often.
#[derive(Debug, Default)]
struct Seen {
    steps: u64,
    commits: u64,
    aborts: u64,
    unknown: u64,
    late: u64,
    revocations: u64,
    losses: u64,
    crashes: u64,
    refusals: u64,
}

struct World {
    random: SmallRng,
    broker: Broker,
    workers: Vec<Worker>,
    /// A worker that does nothing for some steps, and which steps.
    frozen: Option<(usize, u64)>,
    seen: Seen,
}

impl World {
    fn new(seed: u64, mistake: Mistake) -> Self {
        let mut broker = Broker::new(PARTITIONS, WORKERS);
        let workers = (0..WORKERS).map(|id| Worker::start(id, mistake, &mut broker)).collect();
        let random = SmallRng::seed_from_u64(seed);
        Self { random, broker, workers, frozen: None, seen: Seen::default() }
    }

    /// One schedule: random steps of everybody, then a world without faults.
    fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..STEPS {
            self.step(true)?;
        }
        for _ in 0..HEALING {
            if self.broker.is_all_answered() {
                return Ok(());
            }
            self.step(false)?;
        }
        Err(Violation(format!("something is never answered: {:?}", self.broker)))
    }

    fn step(&mut self, faults: bool) -> Result<(), Violation> {
        self.seen.steps += 1;
        let Self { random, broker, workers, frozen, seen } = self;
        let id = random.random_range(0..workers.len());
        if frozen.is_some_and(|(sleeper, until)| sleeper == id && seen.steps < until) {
            return Ok(());
        }
        let worker = &mut workers[id];
        match random.random_range(0..100) {
            0..30 => worker.poll(broker, random, faults, seen),
            30..55 => worker.finish_one(random),
            55..85 => worker.publish(broker, random, faults, seen)?,
            85..88 => worker.learn(broker),
            88..90 => {
                let candidates: Vec<Candidate> = workers.iter().map(Worker::candidate).collect();
                for told in broker.rebalance(random, faults, &candidates) {
                    workers[told.id].joined(told);
                }
            }
            90..93 => worker.finish_one(random),
            _ if !faults => broker.deliver(random, seen)?,
            93 => broker.append(random),
            94 => *frozen = Some((id, seen.steps + random.random_range(20..100))),
            95 => broker.expire(id),
            96 => broker.time_out(id),
            97 => {
                *worker = Worker::start(id, worker.mistake(), broker);
                seen.crashes += 1;
            }
            _ => broker.deliver(random, seen)?,
        }
        Ok(())
    }
}

fn schedules() -> u64 {
    let asked = std::env::var("FUSIONCAP_TEST_SCHEDULES").ok();
    asked.map_or(20_000, |text| text.parse().expect("FUSIONCAP_TEST_SCHEDULES is a number"))
}

fn total(seen: &mut Seen, more: &Seen) {
    let fields = [
        (&mut seen.steps, more.steps),
        (&mut seen.commits, more.commits),
        (&mut seen.aborts, more.aborts),
        (&mut seen.unknown, more.unknown),
        (&mut seen.late, more.late),
        (&mut seen.revocations, more.revocations),
        (&mut seen.losses, more.losses),
        (&mut seen.crashes, more.crashes),
        (&mut seen.refusals, more.refusals),
    ];
    for (sum, count) in fields {
        *sum += count;
    }
}

#[test]
fn no_schedule_loses_doubles_or_tears_anything() {
    let count = schedules();
    let mut seen = Seen::default();
    for seed in 0..count {
        let mut world = World::new(seed, Mistake::None);
        if let Err(Violation(told)) = world.run() {
            panic!("schedule {seed}: {told}");
        }
        total(&mut seen, &world.seen);
    }
    println!("{count} schedules: {seen:?}");
    let often = count / 50;
    for (name, times) in [
        ("commits", seen.commits),
        ("aborts", seen.aborts),
        ("unknown outcomes", seen.unknown),
        ("requests that came late", seen.late),
        ("revocations", seen.revocations),
        ("losses", seen.losses),
        ("crashes", seen.crashes),
        ("refused offsets", seen.refusals),
    ] {
        assert!(times > often, "{name}: only {times} in {count} schedules");
    }
}

#[test]
fn the_schedules_find_every_mistake() {
    for mistake in [
        Mistake::KeepsProducer,
        Mistake::ReadsUnstable,
        Mistake::KeepsWork,
        Mistake::CommitsPosition,
        Mistake::IgnoresOwnership,
        Mistake::ThrowsAllAway,
        Mistake::KeepsGuards,
    ] {
        let found = (0..100_000).find(|&seed| World::new(seed, mistake).run().is_err());
        println!("{mistake:?}: found by schedule {found:?}");
        assert!(found.is_some(), "{mistake:?} is not found");
    }
}
