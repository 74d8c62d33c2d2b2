//! References to one object within a window of time: one of them leads and is processed, the others
//! follow and wait for its answer, and a reference that comes a little later is given the same.
//!
//! Pure; the module above joins it to the stages. An answer is as old as the read behind it: when
//! that is longer ago than the window, the next reference leads anew, although others may still
//! follow the leader before.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The object as a reference names it, and the model that captions it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    /// Generation of the serving model: each has its own answers.
    pub model: u64,
}

/// `W` is a reference, `A` an answer.
#[derive(Debug)]
pub struct Table<W, A> {
    window: Duration,
    /// Most answers that are kept.
    max_kept: usize,
    /// Groups so far.
    groups_made: u64,
    /// The newest group of each object that may still be joined.
    newest: HashMap<Key, Newest<A>>,
    /// Groups whose leaders are being processed, by their number.
    groups: HashMap<u64, Group<W>>,
    /// Answers, the oldest first.
    kept: VecDeque<(Key, u64)>,
}

#[derive(Debug)]
enum Newest<A> {
    InProgress(u64),
    Answered { number: u64, read: Instant, answer: A },
}

#[derive(Debug)]
struct Group<W> {
    key: Key,
    /// When its leader last began to read the object.
    read: Option<Instant>,
    waiting: VecDeque<W>,
}

/// The role of a reference in its group.
#[derive(Debug, PartialEq, Eq)]
pub enum Joined<W, A> {
    /// It leads the group of that number.
    Leads(W, u64),
    Follows,
    Answered(W, A),
}

impl<W, A: Clone> Table<W, A> {
    pub fn new(window: Duration, max_kept: usize) -> Self {
        Self {
            window,
            max_kept,
            groups_made: 0,
            newest: HashMap::new(),
            groups: HashMap::new(),
            kept: VecDeque::new(),
        }
    }

    /// Takes in `work`. Followers for which `counts` is false are dropped now and then, so that
    /// their number stays bounded by that of the others.
    pub fn join(
        &mut self,
        key: Key,
        work: W,
        now: Instant,
        counts: impl Fn(&W) -> bool,
    ) -> Joined<W, A> {
        match self.newest.get(&key) {
            Some(Newest::Answered { read, answer, .. }) if self.is_fresh(*read, now) => {
                return Joined::Answered(work, answer.clone());
            }
            Some(Newest::InProgress(number)) => {
                let window = self.window;
                if let Some(group) = self.groups.get_mut(number)
                    && group.read.is_none_or(|read| now.saturating_duration_since(read) <= window)
                {
                    if group.waiting.len() == group.waiting.capacity() {
                        group.waiting.retain(counts);
                    }
                    group.waiting.push_back(work);
                    return Joined::Follows;
                }
            }
            _ => {}
        }
        self.groups_made += 1;
        let number = self.groups_made;
        self.newest.insert(key.clone(), Newest::InProgress(number));
        self.groups.insert(number, Group { key, read: None, waiting: VecDeque::new() });
        Joined::Leads(work, number)
    }

    /// The group's leader begins to read the object.
    pub fn reads(&mut self, number: u64, now: Instant) {
        if let Some(group) = self.groups.get_mut(&number) {
            group.read = Some(now);
        }
    }

    /// Ends a group: its followers, to be answered. An `answer` is kept for later references; without
    /// one the next reference leads anew.
    pub fn answer(&mut self, number: u64, answer: Option<A>, now: Instant) -> VecDeque<W> {
        let Some(Group { key, read, waiting }) = self.groups.remove(&number) else {
            return VecDeque::new();
        };
        if self.is_newest(&key, number) {
            if let (Some(answer), Some(read)) = (answer, read) {
                self.kept.push_back((key.clone(), number));
                self.newest.insert(key, Newest::Answered { number, read, answer });
            } else {
                self.newest.remove(&key);
            }
        }
        self.forget(now);
        waiting
    }

    /// The group's leader was dropped: the first follower that still counts leads it now. A group
    /// without any is over.
    pub fn promote_follower(&mut self, number: u64, counts: impl Fn(&W) -> bool) -> Option<W> {
        let group = self.groups.get_mut(&number)?;
        while let Some(next) = group.waiting.pop_front() {
            if counts(&next) {
                group.read = None;
                return Some(next);
            }
        }
        if let Some(Group { key, .. }) = self.groups.remove(&number)
            && self.is_newest(&key, number)
        {
            self.newest.remove(&key);
        }
        None
    }

    fn is_fresh(&self, read: Instant, now: Instant) -> bool {
        now.saturating_duration_since(read) <= self.window
    }

    fn is_newest(&self, key: &Key, of: u64) -> bool {
        match self.newest.get(key) {
            Some(Newest::InProgress(number) | Newest::Answered { number, .. }) => *number == of,
            None => false,
        }
    }

    /// Drops the oldest answers while they are too many, or too old to be given.
    fn forget(&mut self, now: Instant) {
        while let Some((key, number)) = self.kept.front() {
            let old = match self.newest.get(key) {
                Some(Newest::Answered { number: newest, read, .. }) if newest == number => {
                    !self.is_fresh(*read, now)
                }
                // Another has led since.
                _ => true,
            };
            if !old && self.kept.len() <= self.max_kept {
                return;
            }
            if let Some((key, number)) = self.kept.pop_front()
                && self.is_newest(&key, number)
            {
                self.newest.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn key(name: &str) -> Key {
        Key { bucket: "photos".into(), key: name.into(), version_id: None, etag: None, model: 0 }
    }

    fn all(_: &u32) -> bool {
        true
    }

    #[test]
    fn the_first_leads_and_the_others_get_its_answer() {
        let (mut table, now) = (Table::new(WINDOW, 10), Instant::now());
        assert_eq!(table.join(key("a"), 0, now, all), Joined::Leads(0, 1));
        assert_eq!(table.join(key("a"), 1, now, all), Joined::Follows);
        assert_eq!(table.join(key("b"), 2, now, all), Joined::Leads(2, 2));
        let version = Key { version_id: Some("1".into()), ..key("a") };
        assert_eq!(table.join(version, 3, now, all), Joined::Leads(3, 3));
        table.reads(1, now);
        assert_eq!(table.answer(1, Some("cat"), now), [1]);
        assert_eq!(table.join(key("a"), 4, now + WINDOW, all), Joined::Answered(4, "cat"));
        assert!(table.answer(1, Some("dog"), now).is_empty());
    }

    #[test]
    fn an_answer_is_as_old_as_its_read() {
        let (mut table, now) = (Table::new(WINDOW, 10), Instant::now());
        let later = now + WINDOW + Duration::from_millis(1);
        assert_eq!(table.join(key("a"), 0, now, all), Joined::Leads(0, 1));
        // However long the leader waits for its turn, what it will read is new.
        assert_eq!(table.join(key("a"), 1, later, all), Joined::Follows);
        table.reads(1, now);
        assert_eq!(table.join(key("a"), 2, later, all), Joined::Leads(2, 2));
        assert_eq!(table.join(key("a"), 3, later, all), Joined::Follows);
        // The older group ends without a word about the newer one.
        assert_eq!(table.answer(1, Some("cat"), later), [1]);
        assert_eq!(table.join(key("a"), 4, later, all), Joined::Follows);
        table.reads(2, later);
        assert_eq!(table.answer(2, Some("dog"), later), [3, 4]);
        assert_eq!(table.join(key("a"), 5, later, all), Joined::Answered(5, "dog"));
        assert_eq!(table.join(key("a"), 6, later + later.duration_since(now), all), {
            Joined::Leads(6, 3)
        });
    }

    #[test]
    fn failures_are_shared_and_forgotten() {
        let (mut table, now) = (Table::<_, ()>::new(WINDOW, 10), Instant::now());
        assert_eq!(table.join(key("a"), 0, now, all), Joined::Leads(0, 1));
        assert_eq!(table.join(key("a"), 1, now, all), Joined::Follows);
        table.reads(1, now);
        assert_eq!(table.answer(1, None, now), [1]);
        assert_eq!(table.join(key("a"), 2, now, all), Joined::Leads(2, 2));
    }

    #[test]
    fn the_first_that_counts_takes_over() {
        let (mut table, now) = (Table::<_, ()>::new(WINDOW, 10), Instant::now());
        for work in 0..4 {
            table.join(key("a"), work, now, all);
        }
        assert_eq!(table.promote_follower(1, |work| *work > 1), Some(2));
        assert_eq!(table.promote_follower(1, |work| *work > 3), None);
        assert_eq!(table.join(key("a"), 9, now, all), Joined::Leads(9, 2));
    }

    #[test]
    fn answers_are_kept_for_a_while_and_not_too_many_of_them() {
        let (mut table, now) = (Table::new(WINDOW, 3), Instant::now());
        let mut one = |name: u32, now| {
            if let Joined::Leads(_, number) = table.join(key(&name.to_string()), name, now, all) {
                table.reads(number, now);
                table.answer(number, Some(name), now);
            }
            (table.kept.len(), table.newest.len(), table.groups.len())
        };
        assert_eq!((0..9).map(|name| one(name, now)).last(), Some((3, 3, 0)));
        assert_eq!(one(9, now + WINDOW * 2), (1, 1, 0));
    }

    #[test]
    fn those_that_do_not_count_are_not_gathered() {
        let (mut table, now) = (Table::<_, ()>::new(WINDOW, 3), Instant::now());
        for work in 0..10_000_u32 {
            table.join(key("a"), work, now, |other| other + 10 > work);
        }
        assert!(table.groups[&1].waiting.len() < 50);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(u8),
        Read(usize),
        Answer(usize, bool),
        GiveUp(usize),
        /// All that came before some reference are stale from now on.
        Stale(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_u8).prop_map(Step::Join),
            2 => (0..8_usize).prop_map(Step::Read),
            3 => (0..8_usize, any::<bool>()).prop_map(|(which, good)| Step::Answer(which, good)),
            2 => (0..8_usize).prop_map(Step::GiveUp),
            1 => (0..40_u32).prop_map(Step::Stale),
            1 => (0..4_000_u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Each reference is answered once, with an answer about its object, or it was stale.
        #[test]
        fn each_is_answered_once_or_stale(steps in proptest::collection::vec(step(), 1..200)) {
            let mut table = Table::new(WINDOW, 2);
            let mut now = Instant::now();
            let (mut objects, mut stale_below) = (Vec::new(), 0);
            let mut leading: Vec<(u32, u64)> = Vec::new();
            let mut answered: HashMap<u32, u32> = HashMap::new();
            for step in steps {
                match step {
                    Step::Join(object) => {
                        let work = objects.len() as u32;
                        objects.push(object);
                        let name = key(&object.to_string());
                        match table.join(name, work, now, |work| *work >= stale_below) {
                            Joined::Leads(work, number) => leading.push((work, number)),
                            Joined::Follows => {}
                            Joined::Answered(work, answer) => {
                                prop_assert_eq!(answer, object);
                                *answered.entry(work).or_default() += 1;
                            }
                        }
                    }
                    Step::Read(which) if which < leading.len() => {
                        table.reads(leading[which].1, now);
                    }
                    Step::Answer(which, good) if which < leading.len() => {
                        let (leader, number) = leading.remove(which);
                        let object = objects[leader as usize];
                        let waited = table.answer(number, good.then_some(object), now);
                        for work in waited.into_iter().chain([leader]) {
                            prop_assert_eq!(objects[work as usize], object);
                            *answered.entry(work).or_default() += 1;
                        }
                    }
                    Step::GiveUp(which) if which < leading.len() => {
                        // Only what is stale is given up.
                        let (leader, number) = leading.remove(which);
                        stale_below = stale_below.max(leader + 1);
                        let next = table.promote_follower(number, |work| *work >= stale_below);
                        leading.extend(next.map(|work| (work, number)));
                    }
                    Step::Stale(ago) => {
                        stale_below = stale_below.max((objects.len() as u32).saturating_sub(ago));
                    }
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    _ => {}
                }
            }
            for (leader, number) in leading {
                for work in table.answer(number, None, now).into_iter().chain([leader]) {
                    *answered.entry(work).or_default() += 1;
                }
            }
            prop_assert!(table.groups.is_empty());
            for work in 0..objects.len() as u32 {
                match answered.get(&work) {
                    Some(times) => prop_assert_eq!(*times, 1, "{} was answered so often", work),
                    None => prop_assert!(work < stale_below, "{} was lost", work),
                }
            }
        }
    }
}
