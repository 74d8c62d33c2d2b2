//! Which fault comes next: decks of all kinds, shuffled by the seed.
//!
//! A deck holds every kind, so that each has happened when the first one is used up, however
//! short the run. The seed decides the order, the victims and the pauses; which of the next faults
//! is possible (no second broker while one is down) is decided by how the run goes.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::world::store::Trouble;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL of a worker, which starts again.
    Kill,
    /// SIGTERM of a worker, which starts again.
    Terminate,
    /// SIGSTOP of a worker for longer than its session, then SIGCONT.
    Freeze,
    /// SIGKILL of a broker, which starts again.
    KillBroker,
    /// A broker's clean stop and start.
    StopBroker,
    /// A fourth worker comes.
    ScaleOut,
    /// And goes.
    ScaleIn,
    /// The object store misbehaves for some seconds.
    Store(Trouble),
}

impl Fault {
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Terminate,
        Self::Freeze,
        Self::KillBroker,
        Self::StopBroker,
        Self::ScaleOut,
        Self::ScaleIn,
        Self::Store(Trouble::Unavailable),
        Self::Store(Trouble::Slow),
        Self::Store(Trouble::CutOff),
        Self::Store(Trouble::WrongLength),
    ];

    /// How often it stands in a deck.
    fn share(self) -> usize {
        match self {
            Self::Kill => 4,
            Self::Terminate | Self::Freeze => 2,
            _ => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "worker SIGKILL",
            Self::Terminate => "worker SIGTERM",
            Self::Freeze => "worker SIGSTOP, SIGCONT",
            Self::KillBroker => "broker SIGKILL",
            Self::StopBroker => "broker clean stop",
            Self::ScaleOut => "scale-out",
            Self::ScaleIn => "scale-in",
            Self::Store(Trouble::Unavailable) => "S3 answers 503",
            Self::Store(Trouble::Slow) => "S3 answers slowly",
            Self::Store(Trouble::CutOff) => "S3 cuts off in mid-body",
            Self::Store(Trouble::WrongLength) => "S3 sends a wrong length",
        }
    }
}

/// Draws faults, and everything else that is left to chance.
pub struct Schedule {
    chance: StdRng,
    deck: Vec<Fault>,
    decks: usize,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        let chance = StdRng::seed_from_u64(seed);
        Self { chance, deck: Vec::new(), decks: 0 }
    }

    /// The next fault of those that are possible now; the others keep their places.
    pub fn draw(&mut self, mut possible: impl FnMut(Fault) -> bool) -> Option<Fault> {
        if self.deck.is_empty() {
            for fault in Fault::ALL {
                self.deck.extend(std::iter::repeat_n(fault, fault.share()));
            }
            self.deck.shuffle(&mut self.chance);
            self.decks += 1;
        }
        let place = self.deck.iter().position(|fault| possible(*fault))?;
        Some(self.deck.remove(place))
    }

    /// Whether every kind has been drawn.
    pub fn is_through(&self) -> bool {
        self.decks > 1 || (self.decks == 1 && self.deck.is_empty())
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        (!among.is_empty()).then(|| among[self.chance.random_range(0..among.len())])
    }

    pub fn within(&mut self, shortest_ms: u64, longest_ms: u64) -> Duration {
        Duration::from_millis(self.chance.random_range(shortest_ms..=longest_ms))
    }

    /// Heads, in so many of ten throws.
    pub fn throw(&mut self, of_ten: u32) -> bool {
        self.chance.random_range(0..10) < of_ten
    }
}

#[test]
fn a_seed_gives_the_same_faults_and_a_deck_gives_all_of_them() {
    let draw = |seed| {
        let mut schedule = Schedule::new(seed);
        let mut drawn = Vec::new();
        while !schedule.is_through() {
            drawn.extend(schedule.draw(|_| true));
        }
        drawn
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    assert!(Fault::ALL.iter().all(|fault| draw(7).contains(fault)));
}

#[test]
fn what_is_not_possible_now_comes_later() {
    let mut schedule = Schedule::new(1);
    let brokers = [Fault::KillBroker, Fault::StopBroker];
    let mut drawn = Vec::new();
    while let Some(fault) = schedule.draw(|fault| !brokers.contains(&fault)) {
        drawn.push(fault);
    }
    assert!(!schedule.is_through() && !drawn.contains(&Fault::KillBroker));
    let rest: Vec<Fault> = (0..2).filter_map(|_| schedule.draw(|_| true)).collect();
    assert!(brokers.iter().all(|fault| rest.contains(fault)) && schedule.is_through());
}
