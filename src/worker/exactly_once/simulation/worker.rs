//! One worker: the real state machines, driven as the threads of a process drive them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

use super::broker::{
    Broker, Callback, Candidate, EndTxn, Joined, Membership, Record, Refusal, Violation,
};
use super::{Mistake, Seen};
use crate::kafka::outcome::TransactionOutcome;
use crate::worker::exactly_once::assignment::{Assignment, Polled};
use crate::worker::exactly_once::in_flight::{InFlight, InFlightGuard};
use crate::worker::exactly_once::ledger::{FinishedPrefix, MessageId};
use crate::worker::exactly_once::{Protocol, Ready, is_owned};

/// References in hand above which nothing is polled.
const MOST_IN_FLIGHT: usize = 6;

/// A message to the publisher.
#[derive(Debug)]
enum Event {
    Tracked(MessageId, usize, InFlightGuard),
    Finished(MessageId, usize),
    Revoked(Vec<i32>),
    Lost(Vec<i32>),
}

/// Where the publisher stands.
#[derive(Debug)]
enum Publishing {
    Idle,
    /// A transaction is under way: 0 to produce, 1 to send offsets, 2 to commit.
    Open {
        finished: Vec<FinishedPrefix<Record>>,
        group: Membership,
        next: u8,
    },
    Abort,
    /// The transaction failed; the producer may have to be replaced before the rewind.
    Failed,
}

pub struct Worker {
    id: usize,
    mistake: Mistake,
    assignment: Assignment<Membership>,
    protocol: Protocol<Record>,
    /// Where the consumer reads next; None: at the committed offset.
    positions: BTreeMap<i32, Option<i64>>,
    /// The first offset that it has read since its last assignment or seek.
    begun: BTreeMap<i32, i64>,
    client: Option<Membership>,
    callbacks: VecDeque<Callback>,
    /// The polling thread waits for the publisher's answer.
    revoking: Option<Vec<i32>>,
    answered: bool,
    inbox: VecDeque<Event>,
    /// The channel to the stages: message and index of each record.
    queue: VecDeque<(MessageId, usize)>,
    /// Message and index of each record that the stages hold.
    stages: Vec<(MessageId, usize)>,
    in_flight: InFlight,
    is_paused: bool,
    /// The producer's epoch.
    producer: Option<u32>,
    publishing: Publishing,
    /// A revocation that waits for the transaction under way.
    flushing: Option<Vec<i32>>,
}

impl Worker {
    /// A new process in the place of an old one.
    pub fn start(id: usize, mistake: Mistake, broker: &mut Broker) -> Self {
        broker.forget_member(id);
        Self {
            id,
            mistake,
            assignment: Assignment::default(),
            protocol: Protocol::default(),
            positions: BTreeMap::new(),
            begun: BTreeMap::new(),
            client: None,
            callbacks: VecDeque::new(),
            revoking: None,
            answered: false,
            inbox: VecDeque::new(),
            queue: VecDeque::new(),
            stages: Vec::new(),
            in_flight: InFlight::default(),
            is_paused: false,
            producer: Some(broker.init_transactions(id)),
            publishing: Publishing::Idle,
            flushing: None,
        }
    }

    pub fn mistake(&self) -> Mistake {
        self.mistake
    }

    pub fn candidate(&self) -> Candidate {
        let is_rebalancing = !self.callbacks.is_empty() || self.revoking.is_some();
        Candidate { id: self.id, client: self.client, is_rebalancing }
    }

    /// The group's answer to its joining.
    pub fn joined(&mut self, told: Joined) {
        self.client = Some(told.membership);
        self.callbacks.extend(told.callbacks);
    }

    /// Hears that the group took it for dead.
    pub fn learn(&mut self, broker: &Broker) {
        let Some(client) = self.client else {
            return;
        };
        if !broker.is_member(self.id, client.member) {
            self.client = None;
            self.callbacks.clear();
            self.callbacks.push_back(Callback::Lost(self.positions.keys().copied().collect()));
        }
    }

    /// One turn of the polling thread.
    pub fn poll(
        &mut self,
        broker: &mut Broker,
        random: &mut SmallRng,
        faults: bool,
        seen: &mut Seen,
    ) {
        if let Some(partitions) = self.revoking.take() {
            // Answered, or not waited for any longer.
            if self.answered || (faults && random.random_range(0..8) == 0) {
                self.let_go(broker, &partitions);
            } else {
                self.revoking = Some(partitions);
            }
            return;
        }
        // A rewind that fails is tried again at the next turn.
        if !faults || random.random_range(0..4) != 0 {
            self.rewind(broker);
        }
        self.receive(random);
        self.balance();
        if random.random::<bool>()
            && let Some(callback) = self.callbacks.pop_front()
        {
            self.serve(callback, seen);
            if self.revoking.is_some() {
                return;
            }
        }
        if let Some(client) = self.client {
            self.assignment.set_group(Arc::new(client));
        }
        let partitions: Vec<i32> = self.positions.keys().copied().collect();
        if partitions.is_empty() || self.is_paused {
            return;
        }
        for _ in 0..random.random_range(1..4) {
            let partition = partitions[random.random_range(0..partitions.len())];
            // A client that repeats a message after a resume; a seek or an assignment bars what was
            // read before it.
            let again = faults && random.random_range(0..50) == 0;
            self.fetch(broker, partition, again);
            if self.in_flight.references() >= MOST_IN_FLIGHT {
                break;
            }
        }
    }

    /// The stages take some of what waits for them, and drop what is stale.
    fn receive(&mut self, random: &mut SmallRng) {
        for _ in 0..random.random_range(0..4) {
            let Some(record) = self.queue.pop_front() else {
                return;
            };
            if self.assignment.is_current(record.0.partition, record.0.epoch) {
                self.stages.push(record);
            }
        }
    }

    fn balance(&mut self) {
        let is_full = self.in_flight.references() >= MOST_IN_FLIGHT;
        if is_full || self.assignment.is_suspended() {
            self.is_paused = true;
        } else if self.in_flight.references() <= MOST_IN_FLIGHT / 2 {
            self.is_paused = false;
        }
    }

    fn rewind(&mut self, broker: &Broker) {
        let wanted = self.assignment.to_rewind();
        if self.mistake == Mistake::ThrowsAllAway && !wanted.is_empty() {
            self.queue.clear();
        }
        for rewind in wanted {
            if rewind.first.is_none() {
                self.assignment.rewound(rewind.partition);
            } else if let Some(offset) = self.committed(broker, rewind.partition) {
                self.positions.insert(rewind.partition, Some(offset));
                self.begun.insert(rewind.partition, offset);
                self.assignment.rewound(rewind.partition);
            }
        }
    }

    fn committed(&self, broker: &Broker, partition: i32) -> Option<i64> {
        match self.mistake {
            Mistake::ReadsUnstable => Some(broker.unstable_offset(partition)),
            _ => broker.stable_offset(partition),
        }
    }

    fn serve(&mut self, callback: Callback, seen: &mut Seen) {
        match callback {
            Callback::Assign(partitions) => {
                for partition in partitions {
                    self.assignment.assign(partition);
                    self.positions.insert(partition, None);
                }
            }
            Callback::Revoke(partitions) => {
                seen.revocations += 1;
                self.answered = false;
                self.inbox.push_back(Event::Revoked(partitions.clone()));
                self.revoking = Some(partitions);
            }
            Callback::Lost(partitions) => {
                seen.losses += 1;
                for &partition in &partitions {
                    self.remove(partition);
                }
                self.inbox.push_back(Event::Lost(partitions));
            }
        }
    }

    fn let_go(&mut self, broker: &mut Broker, partitions: &[i32]) {
        for &partition in partitions {
            self.remove(partition);
            broker.give_back(self.id, partition);
        }
    }

    fn remove(&mut self, partition: i32) {
        self.positions.remove(&partition);
        if self.mistake != Mistake::IgnoresOwnership {
            self.assignment.remove(partition);
        }
    }

    fn fetch(&mut self, broker: &Broker, partition: i32, again: bool) {
        let position = match self.positions.get(&partition).copied().flatten() {
            Some(position) if again => (position - 1).max(self.begun[&partition]),
            Some(position) => position,
            None => {
                let Some(offset) = self.committed(broker, partition) else {
                    return;
                };
                self.begun.insert(partition, offset);
                offset
            }
        };
        let Some(records) = broker.read(partition, position) else {
            return;
        };
        self.positions.insert(partition, Some(position + 1));
        match self.assignment.polled(partition, position) {
            Polled::Taken { epoch } => {
                let message = MessageId { partition, epoch, offset: position };
                let guard = self.in_flight.enter(records);
                self.inbox.push_back(Event::Tracked(message, records, guard));
                self.queue.extend((0..records).map(|index| (message, index)));
            }
            Polled::WentBack if self.mistake != Mistake::KeepsGuards => {
                self.inbox.push_back(Event::Lost(vec![partition]));
            }
            Polled::WentBack | Polled::Dropped => {}
        }
    }

    /// A stage finishes some record; one that is stale may slip through its check.
    pub fn finish_one(&mut self, random: &mut SmallRng) {
        if self.stages.is_empty() {
            return;
        }
        let place = random.random_range(0..self.stages.len());
        let (message, index) = self.stages.swap_remove(place);
        if self.assignment.is_current(message.partition, message.epoch) || random.random::<bool>() {
            self.inbox.push_back(Event::Finished(message, index));
        }
    }

    /// One step of the publisher's thread.
    pub fn publish(
        &mut self,
        broker: &mut Broker,
        random: &mut SmallRng,
        faults: bool,
        seen: &mut Seen,
    ) -> Result<(), Violation> {
        match std::mem::replace(&mut self.publishing, Publishing::Idle) {
            Publishing::Idle => self.take_events(broker, random),
            Publishing::Open { finished, group, next } => {
                self.advance(broker, random, faults, seen, (finished, group, next))?;
            }
            Publishing::Abort => {
                let ended = self.send_end(broker, random, faults, false)?;
                self.end(ended, seen);
            }
            Publishing::Failed => {
                if self.producer.is_none() {
                    self.producer = Some(broker.init_transactions(self.id));
                }
                self.protocol.allow_rewind(&self.assignment);
            }
        }
        if matches!(self.publishing, Publishing::Idle)
            && let Some(partitions) = self.flushing.take()
        {
            self.protocol.forget(&partitions);
            self.answered = true;
        }
        Ok(())
    }

    fn take_events(&mut self, broker: &mut Broker, random: &mut SmallRng) {
        for _ in 0..random.random_range(1..6) {
            match self.inbox.pop_front() {
                None => break,
                Some(Event::Tracked(message, records, guard)) => {
                    self.protocol.track(&self.assignment, message, records, guard);
                }
                Some(Event::Finished(message, index)) => {
                    let MessageId { partition, offset, .. } = message;
                    self.protocol.finish(message, index, (partition, offset, index));
                }
                Some(Event::Lost(partitions)) => {
                    if self.mistake != Mistake::IgnoresOwnership {
                        self.protocol.forget(&partitions);
                    }
                }
                Some(Event::Revoked(partitions)) => {
                    self.flushing = Some(partitions);
                    break;
                }
            }
        }
        let ready = self.protocol.prepare(&self.assignment);
        let Some(Ready { finished, group: Some(group) }) = ready else {
            return;
        };
        if self.producer.is_none() {
            self.producer = Some(broker.init_transactions(self.id));
        }
        self.publishing = Publishing::Open { finished, group: *group, next: 0 };
    }

    fn advance(
        &mut self,
        broker: &mut Broker,
        random: &mut SmallRng,
        faults: bool,
        seen: &mut Seen,
        (finished, mut group, next): (Vec<FinishedPrefix<Record>>, Membership, u8),
    ) -> Result<(), Violation> {
        let epoch = self.producer.unwrap_or_default();
        let answer = match next {
            0 => {
                let records: Vec<Record> =
                    finished.iter().flat_map(|part| part.outcomes.iter().copied()).collect();
                broker.produce(self.id, epoch, &records)
            }
            1 => {
                if self.mistake == Mistake::IgnoresOwnership {
                    group = self.client.unwrap_or(group);
                }
                broker.send_offsets(self.id, epoch, &self.offsets(&finished), group)
            }
            _ if self.mistake != Mistake::IgnoresOwnership
                && !is_owned(&finished, &self.assignment) =>
            {
                self.publishing = Publishing::Abort;
                return Ok(());
            }
            _ => {
                let ended = self.send_end(broker, random, faults, true)?;
                self.end(ended, seen);
                return Ok(());
            }
        };
        match answer {
            Ok(()) => self.publishing = Publishing::Open { finished, group, next: next + 1 },
            Err(Refusal::Group) => {
                seen.refusals += 1;
                self.publishing = Publishing::Abort;
            }
            Err(Refusal::Fenced) => self.end(TransactionOutcome::Unknown, seen),
        }
        Ok(())
    }

    fn offsets(&self, finished: &[FinishedPrefix<Record>]) -> Vec<(i32, i64)> {
        let position = |partition| self.positions.get(&partition).copied().flatten();
        let of = |part: &FinishedPrefix<Record>| match self.mistake {
            Mistake::CommitsPosition => position(part.partition).unwrap_or(part.next_offset),
            _ => part.next_offset,
        };
        finished.iter().map(|part| (part.partition, of(part))).collect()
    }

    /// Sends the end of a transaction over a network that may lose, delay or repeat it.
    fn send_end(
        &mut self,
        broker: &mut Broker,
        random: &mut SmallRng,
        faults: bool,
        commit: bool,
    ) -> Result<TransactionOutcome, Violation> {
        let epoch = self.producer.unwrap_or_default();
        let request = EndTxn { worker: self.id, epoch, commit };
        let clean =
            if commit { TransactionOutcome::Committed } else { TransactionOutcome::Aborted };
        let luck = if faults { random.random_range(0..10) } else { 9 };
        if luck == 0 {
            return Ok(TransactionOutcome::Unknown);
        }
        if luck == 1 {
            broker.delay(request);
            return Ok(TransactionOutcome::Unknown);
        }
        let refused = broker.end(request)?.is_err();
        Ok(match luck {
            _ if refused => TransactionOutcome::Unknown,
            2 => TransactionOutcome::Unknown,
            3 => {
                broker.delay(request);
                if commit {
                    TransactionOutcome::CommittedInDoubt
                } else {
                    TransactionOutcome::Unknown
                }
            }
            _ => clean,
        })
    }

    fn end(&mut self, outcome: TransactionOutcome, seen: &mut Seen) {
        match outcome {
            TransactionOutcome::Committed | TransactionOutcome::CommittedInDoubt => {
                seen.commits += 1
            }
            TransactionOutcome::Aborted => seen.aborts += 1,
            TransactionOutcome::Unknown => seen.unknown += 1,
        }
        if self.mistake != Mistake::KeepsWork {
            self.protocol.end(&self.assignment, outcome);
        }
        if !outcome.keeps_producer() && self.mistake != Mistake::KeepsProducer {
            self.producer = None;
        }
        if !outcome.is_committed() {
            self.publishing = Publishing::Failed;
        }
    }
}
