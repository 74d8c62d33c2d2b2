//! Injects the faults, one after the other and several at a time, and waits for the recovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::report::Tally;
use crate::schedule::{Fault, Schedule};
use crate::settings::Settings;
use crate::world::brokers::{BROKERS, Brokers};
use crate::world::feed::{Answered, Feed};
use crate::world::store::Store;
use crate::world::transactions::{End, Transactions};
use crate::world::workers::{Condition, Number, Workers};

/// The one that comes and goes; the others are there from the start.
pub const FOURTH: Number = 3;

const TICK: Duration = Duration::from_millis(20);
const PROGRESS: Duration = Duration::from_secs(10);
/// Without a new answer for so long, there won't be one.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long the object store's trouble waits for a request to meet: brokers may be away meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

pub struct FaultInjector {
    pub brokers: Brokers,
    pub workers: Workers,
    pub store: Store,
    pub feed: Feed,
    pub transactions: Transactions,
    answered: Answered,
    interrupted: Arc<AtomicBool>,
    schedule: Schedule,
    injections: Vec<Injection>,
    trouble: Option<Trouble>,
    started: Instant,
    told: Instant,
}

/// A fault that has happened, and when, in milliseconds since 1970: it began at `from` and was
/// done at `to`.
struct Injection {
    fault: Fault,
    /// The worker whose transaction it was aimed at; a broker's fault can hit any.
    victim: Option<String>,
    from: i64,
    to: i64,
    /// Requests that the object store's trouble met.
    harmed: u64,
}

/// The object store's, going on.
struct Trouble {
    fault: Fault,
    until: Instant,
    harmed_before: u64,
}

impl FaultInjector {
    pub fn new(
        world: (Brokers, Workers, Store, Feed, Transactions),
        answered: Answered,
        seed: u64,
        interrupted: Arc<AtomicBool>,
    ) -> Self {
        let (brokers, workers, store, feed, transactions) = world;
        Self {
            brokers,
            workers,
            store,
            feed,
            transactions,
            answered,
            interrupted,
            schedule: Schedule::new(seed),
            injections: Vec::new(),
            trouble: None,
            started: Instant::now(),
            told: Instant::now(),
        }
    }

    /// Injects faults until the time is over, each kind has happened and the references are
    /// produced. They begin when there is work for them to hit.
    pub fn run(&mut self, settings: &Settings) {
        while self.answered.all() == 0 {
            assert!(self.started.elapsed() < PATIENCE, "nothing is answered in the calm before");
            self.tick();
        }
        self.started = Instant::now();
        let mut next = Instant::now();
        while self.started.elapsed() < settings.faults
            || !self.schedule.is_through()
            || self.feed.produced() < settings.references
            || self.trouble.as_ref().is_some_and(|trouble| self.harmed(trouble) == 0)
        {
            self.tick();
            if Instant::now() < next {
                continue;
            }
            if let Some(fault) = self.draw() {
                self.inject(fault);
                next = Instant::now() + self.schedule.within(300, 3_000);
            }
        }
    }

    fn draw(&mut self) -> Option<Fault> {
        let upright = self.workers.up().len();
        let fourth = self.workers.condition(FOURTH);
        let broken = self.brokers.is_under_repair();
        let troubled = self.trouble.is_some();
        self.schedule.draw(|fault| match fault {
            // Somebody is to go on with the work.
            Fault::Kill | Fault::Terminate | Fault::Freeze => upright > 1,
            Fault::KillBroker | Fault::StopBroker => !broken,
            Fault::ScaleOut => fourth == Condition::Away,
            Fault::ScaleIn => fourth == Condition::Up && upright > 1,
            Fault::Store(_) => !troubled,
        })
    }

    fn inject(&mut self, fault: Fault) {
        println!("{:>5} s  {}", self.started.elapsed().as_secs(), fault.name());
        match fault {
            Fault::Kill | Fault::Terminate | Fault::Freeze => self.inject_into_worker(fault),
            Fault::KillBroker => self.inject_into_broker(fault, "kill"),
            Fault::StopBroker => self.inject_into_broker(fault, "stop"),
            Fault::ScaleOut => {
                self.workers.start(FOURTH);
                self.note(fault, None, (0, 0), 0);
            }
            Fault::ScaleIn => {
                let times = self.workers.terminate(FOURTH, false, Some(&self.transactions));
                self.note(fault, Some(FOURTH), times, 0);
            }
            Fault::Store(kind) => {
                let harmed_before = self.store.harmed();
                let until = Instant::now() + self.schedule.within(2_000, 6_000);
                self.store.set(Some(kind));
                self.trouble = Some(Trouble { fault, until, harmed_before });
            }
        }
    }

    fn inject_into_worker(&mut self, fault: Fault) {
        let upright = self.workers.up();
        let Some(victim) = self.schedule.pick(&upright) else {
            return;
        };
        // Most are timed for an open transaction, the others come at any moment.
        let aim = self.schedule.throw(8).then_some(&self.transactions);
        let times = match fault {
            Fault::Kill => {
                let pause = self.schedule.within(0, 3_000);
                self.workers.kill(victim, pause, aim)
            }
            Fault::Terminate => self.workers.terminate(victim, true, aim),
            _ => {
                // The session is 9 s.
                let pause = self.schedule.within(11_000, 15_000);
                self.workers.freeze(victim, pause, &self.transactions)
            }
        };
        self.note(fault, Some(victim), times, 0);
    }

    fn inject_into_broker(&mut self, fault: Fault, command: &'static str) {
        let all: Vec<i32> = (1..=BROKERS).collect();
        let Some(number) = self.schedule.pick(&all) else {
            return;
        };
        let down = self.schedule.within(2_000, 8_000);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.transactions.any_is_open() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let gone = self.brokers.bounce(command, number, down);
        // A clean stop takes its time, and the transactions meanwhile come and go.
        let to = if fault == Fault::KillBroker { gone.to } else { gone.from };
        self.note(fault, None, (gone.from, to), 0);
    }

    fn note(&mut self, fault: Fault, victim: Option<Number>, times: (i64, i64), harmed: u64) {
        let victim = victim.map(|number| self.workers.transactional_id(number).to_owned());
        self.injections.push(Injection { fault, victim, from: times.0, to: times.1, harmed });
    }

    fn tick(&mut self) {
        assert!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        self.workers.tick();
        let time = Instant::now();
        let is_over = self.trouble.as_ref().is_some_and(|trouble| {
            let has_met = self.harmed(trouble) > 0;
            time >= trouble.until + if has_met { Duration::ZERO } else { LONGEST_WAIT }
        });
        if let Some(trouble) = self.trouble.take_if(|_| is_over) {
            self.calm(&trouble);
        }
        if self.told.elapsed() >= PROGRESS {
            self.told = time;
            self.tell();
        }
        std::thread::sleep(TICK);
    }

    /// Requests that met it.
    fn harmed(&self, trouble: &Trouble) -> u64 {
        self.store.harmed() - trouble.harmed_before
    }

    fn calm(&mut self, trouble: &Trouble) {
        self.store.set(None);
        self.note(trouble.fault, None, (0, 0), self.harmed(trouble));
    }

    fn tell(&self) {
        let (committed, aborted) = self.transactions.ended();
        println!(
            "{:>5} s  {} references produced, {} answered; {} faults; {} workers up; \
             {committed} transactions committed, {aborted} aborted",
            self.started.elapsed().as_secs(),
            self.feed.produced(),
            self.answered.all(),
            self.injections.len(),
            self.workers.up().len(),
        );
    }

    /// Ends the faults, and waits until every reference is answered or nothing more comes.
    pub fn await_all_answered(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            self.calm(&trouble);
        }
        self.feed.end();
        let mut answered = 0;
        let mut last = Instant::now();
        while last.elapsed() < PATIENCE {
            self.tick();
            let so_far = self.answered.all();
            if so_far > answered {
                (answered, last) = (so_far, Instant::now());
            }
            let is_whole = !self.brokers.is_under_repair() && self.workers.all_are_up_or_away();
            if is_whole && self.feed.has_ended() && answered >= self.feed.produced() {
                return;
            }
        }
        println!("nothing was answered for {PATIENCE:?}");
    }

    /// How often each fault happened, and how often it hit an open transaction.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for injection in &self.injections {
            let count = tally.faults.entry(injection.fault.name()).or_default();
            count.times += 1;
            count.requests += injection.harmed;
            if self.hit_open_transaction(injection) {
                count.in_open_transaction += 1;
            }
        }
        tally
    }

    fn hit_open_transaction(&self, injection: &Injection) -> bool {
        let Injection { fault, victim, from, to, .. } = injection;
        match (fault, victim) {
            // Its open transaction was aborted with it, or while it was frozen.
            (Fault::Kill | Fault::Freeze, Some(id)) => {
                self.transactions.open_during(id, *from, *to) == Some(End::Aborted)
            }
            (Fault::Terminate | Fault::ScaleIn, Some(id)) => {
                self.transactions.open_during(id, *from, *to).is_some()
            }
            (Fault::KillBroker | Fault::StopBroker, _) => {
                self.transactions.any_open_during(*from, *to)
            }
            _ => false,
        }
    }
}
