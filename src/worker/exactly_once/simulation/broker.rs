//! The brokers: logs, committed offsets, one group, one transactional id a worker.

use rand::Rng;
use rand::rngs::SmallRng;

use super::Seen;

/// Partition, offset, index.
pub type Record = (i32, i64, usize);

/// A violation of the protocol.
#[derive(Debug)]
pub struct Violation(pub String);

/// A member as the group knows it; the metadata of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    pub member: u32,
    pub generation: u32,
}

/// A message from the group to a member; served inside `poll`.
#[derive(Debug)]
pub enum Callback {
    Assign(Vec<i32>),
    Revoke(Vec<i32>),
    Lost(Vec<i32>),
}

/// A worker as it stands before the group.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub id: usize,
    /// Its membership, as its client knows it.
    pub client: Option<Membership>,
    /// It has not served all messages from the group.
    pub is_rebalancing: bool,
}

/// The group's answer to a member that has joined.
#[derive(Debug)]
pub struct Joined {
    pub id: usize,
    pub membership: Membership,
    pub callbacks: Vec<Callback>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Fenced,
    /// Not a member, or of another generation.
    Group,
}

#[derive(Debug)]
pub struct Broker {
    /// Records of each message, by partition and offset.
    log: Vec<Vec<usize>>,
    committed: Vec<i64>,
    generation: u32,
    last_member: u32,
    members: Vec<Option<u32>>,
    /// Who was given each partition and has not given it back.
    owners: Vec<Option<usize>>,
    producers: Vec<Transactions>,
    /// Requests that are still on their way.
    wire: Vec<EndTxn>,
}

/// The coordinator's state of one transactional id.
#[derive(Debug, Default)]
struct Transactions {
    epoch: u32,
    open: Option<Open>,
}

#[derive(Debug, Default)]
struct Open {
    records: Vec<Record>,
    offsets: Vec<(i32, i64)>,
}

/// A request to end a transaction. It names a producer's epoch, and no transaction: that is why a
/// late one is dangerous.
#[derive(Clone, Copy, Debug)]
pub struct EndTxn {
    pub worker: usize,
    pub epoch: u32,
    pub commit: bool,
}

fn index(partition: i32) -> usize {
    usize::try_from(partition).expect("partitions are not negative")
}

impl Broker {
    pub fn new(partitions: usize, workers: usize) -> Self {
        Self {
            log: vec![vec![1; 3]; partitions],
            committed: vec![0; partitions],
            generation: 0,
            last_member: 0,
            members: vec![None; workers],
            owners: vec![None; partitions],
            producers: (0..workers).map(|_| Transactions::default()).collect(),
            wire: Vec::new(),
        }
    }

    /// A message of 0 to 2 records.
    pub fn append(&mut self, random: &mut SmallRng) {
        let partition = random.random_range(0..self.log.len());
        self.log[partition].push(random.random_range(0..3));
    }

    /// Records of the message at `offset`; None at the end of the partition.
    pub fn read(&self, partition: i32, offset: i64) -> Option<usize> {
        self.log[index(partition)].get(usize::try_from(offset).ok()?).copied()
    }

    /// The committed offset; None while a transaction may still move it (`require_stable`,
    /// KIP-447).
    pub fn stable_offset(&self, partition: i32) -> Option<i64> {
        let moves = |open: &Open| open.offsets.iter().any(|(pending, _)| *pending == partition);
        let pending =
            self.producers.iter().any(|producer| producer.open.as_ref().is_some_and(moves));
        (!pending).then(|| self.committed[index(partition)])
    }

    /// The committed offset, whatever is pending.
    pub fn unstable_offset(&self, partition: i32) -> i64 {
        self.committed[index(partition)]
    }

    pub fn is_all_answered(&self) -> bool {
        self.log.iter().zip(&self.committed).all(|(log, &end)| log.len() as i64 == end)
    }

    // The group.

    /// A worker that starts: whoever it was before is no longer heard of, but its partitions are
    /// free only when the group notices.
    pub fn forget_member(&mut self, worker: usize) {
        self.expire(worker);
    }

    /// Takes a member for dead.
    pub fn expire(&mut self, worker: usize) {
        if self.members[worker].take().is_some() {
            self.generation += 1;
        }
        for owner in &mut self.owners {
            if *owner == Some(worker) {
                *owner = None;
            }
        }
    }

    pub fn is_member(&self, worker: usize, member: u32) -> bool {
        self.members[worker] == Some(member)
    }

    /// A member has let a partition go.
    pub fn give_back(&mut self, worker: usize, partition: i32) {
        let owner = &mut self.owners[index(partition)];
        if *owner == Some(worker) {
            *owner = None;
        }
    }

    /// Everybody joins anew: free partitions are given away, and with `faults` one that is owned may
    /// be asked back. Waits for members that still have to serve the round before.
    pub fn rebalance(
        &mut self,
        random: &mut SmallRng,
        faults: bool,
        candidates: &[Candidate],
    ) -> Vec<Joined> {
        // A partition that moves on would mend a worker that is stuck.
        if !faults && self.is_settled(candidates) {
            return Vec::new();
        }
        let busy = |worker: &Candidate| self.members[worker.id].is_some() && worker.is_rebalancing;
        if candidates.iter().any(busy) {
            return Vec::new();
        }
        // One that was taken for dead joins anew only when it has heard of it and let go.
        let unaware = |worker: &Candidate| {
            worker.client.is_some_and(|client| !self.is_member(worker.id, client.member))
        };
        let joining: Vec<usize> = candidates
            .iter()
            .filter(|worker| !worker.is_rebalancing && !unaware(worker))
            .map(|worker| worker.id)
            .collect();
        if joining.is_empty() {
            return Vec::new();
        }
        self.generation += 1;
        let mut gets: Vec<Vec<i32>> = vec![Vec::new(); candidates.len()];
        let mut loses: Vec<Vec<i32>> = vec![Vec::new(); candidates.len()];
        for (partition, owner) in self.owners.iter_mut().enumerate() {
            let number = i32::try_from(partition).expect("few partitions");
            match owner {
                None => {
                    let next = joining[random.random_range(0..joining.len())];
                    *owner = Some(next);
                    gets[next].push(number);
                }
                Some(owner) if faults && random.random_range(0..4) == 0 => {
                    loses[*owner].push(number)
                }
                Some(_) => {}
            }
        }
        let mut told = Vec::new();
        for id in joining {
            let member = *self.members[id].get_or_insert_with(|| {
                self.last_member += 1;
                self.last_member
            });
            let membership = Membership { member, generation: self.generation };
            let mut callbacks = Vec::new();
            if !loses[id].is_empty() {
                callbacks.push(Callback::Revoke(std::mem::take(&mut loses[id])));
            }
            if !gets[id].is_empty() {
                callbacks.push(Callback::Assign(std::mem::take(&mut gets[id])));
            }
            told.push(Joined { id, membership, callbacks });
        }
        told
    }

    /// Everybody is a member of this generation, and every partition has an owner.
    fn is_settled(&self, candidates: &[Candidate]) -> bool {
        let is_in = |worker: &Candidate| {
            worker.client.is_some_and(|client| {
                client.generation == self.generation && self.is_member(worker.id, client.member)
            })
        };
        candidates.iter().all(is_in) && self.owners.iter().all(Option::is_some)
    }

    // Transactions.

    /// A new producer: whatever the one before has open is aborted, and its epoch is over.
    pub fn init_transactions(&mut self, worker: usize) -> u32 {
        let producer = &mut self.producers[worker];
        producer.open = None;
        producer.epoch += 1;
        producer.epoch
    }

    /// The broker's own time-out.
    pub fn time_out(&mut self, worker: usize) {
        if self.producers[worker].open.is_some() {
            self.init_transactions(worker);
        }
    }

    pub fn produce(
        &mut self,
        worker: usize,
        epoch: u32,
        records: &[Record],
    ) -> Result<(), Refusal> {
        self.open(worker, epoch)?.records.extend_from_slice(records);
        Ok(())
    }

    pub fn send_offsets(
        &mut self,
        worker: usize,
        epoch: u32,
        offsets: &[(i32, i64)],
        group: Membership,
    ) -> Result<(), Refusal> {
        let known = self.members[worker] == Some(group.member);
        let current = group.generation == self.generation;
        let open = self.open(worker, epoch)?;
        if !known || !current {
            return Err(Refusal::Group);
        }
        open.offsets.extend_from_slice(offsets);
        Ok(())
    }

    fn open(&mut self, worker: usize, epoch: u32) -> Result<&mut Open, Refusal> {
        let producer = &mut self.producers[worker];
        if producer.epoch != epoch {
            return Err(Refusal::Fenced);
        }
        Ok(producer.open.get_or_insert_default())
    }

    /// Ends whatever transaction is open under the request's epoch.
    pub fn end(&mut self, request: EndTxn) -> Result<Result<(), Refusal>, Violation> {
        let producer = &mut self.producers[request.worker];
        if producer.epoch != request.epoch {
            return Ok(Err(Refusal::Fenced));
        }
        let Some(open) = producer.open.take() else {
            return Ok(Ok(()));
        };
        if request.commit {
            self.commit(&open)?;
        }
        Ok(Ok(()))
    }

    pub fn delay(&mut self, request: EndTxn) {
        self.wire.push(request);
    }

    /// One of the requests on their way arrives.
    pub fn deliver(&mut self, random: &mut SmallRng, seen: &mut Seen) -> Result<(), Violation> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let place = random.random_range(0..self.wire.len());
        let request = self.wire.swap_remove(place);
        seen.late += 1;
        self.end(request).map(|_| ())
    }

    /// Makes a transaction visible, and checks it.
    fn commit(&mut self, open: &Open) -> Result<(), Violation> {
        let mut left = open.records.clone();
        for &(partition, next) in &open.offsets {
            let from = self.committed[index(partition)];
            let messages = from..next;
            let expected: Vec<Record> = messages
                .filter_map(|offset| Some((offset, self.read(partition, offset)?)))
                .flat_map(|(offset, records)| (0..records).map(move |i| (partition, offset, i)))
                .collect();
            let (found, others): (Vec<Record>, Vec<Record>) =
                left.into_iter().partition(|record| record.0 == partition);
            left = others;
            if next < from || found != expected {
                let told = format!("offset {from} to {next} of {partition} with {found:?}");
                return Err(Violation(told));
            }
            self.committed[index(partition)] = next;
        }
        if left.is_empty() { Ok(()) } else { Err(Violation(format!("no offset for {left:?}"))) }
    }
}
