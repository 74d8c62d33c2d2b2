//! A TCP proxy between a worker and its broker that reads enough of Kafka's framing to know each
//! request, and does one thing at a time to them: hold one back, lose an answer, present another
//! generation, cut connections, refuse everybody.
//!
//! A connection to the broker outlives the client's where a request of it is held: released later,
//! it arrives as a packet does that was under way all the time. Requests and answers are noted in
//! the order in which they passed, so that a test can show that its fault happened, and when.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kit::kafka::{Cluster, Entry};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub const PRODUCE: i16 = 0;
pub const FIND_COORDINATOR: i16 = 10;
pub const INIT_PRODUCER_ID: i16 = 22;
pub const ADD_PARTITIONS_TO_TXN: i16 = 24;
pub const ADD_OFFSETS_TO_TXN: i16 = 25;
pub const END_TXN: i16 = 26;
pub const TXN_OFFSET_COMMIT: i16 = 28;

const PATIENCE: Duration = Duration::from_secs(90);
/// No test sends a request as large.
const LARGEST_FRAME: usize = 100_000_000;

/// A request as it came from the client.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its place among all that passed.
    pub number: usize,
    pub connection: usize,
    pub api: i16,
    pub correlation: i32,
    /// The bytes after the header.
    pub body: Vec<u8>,
    /// The broker's answer, once it came.
    pub answer: Option<Vec<u8>>,
    /// Whether the client was told.
    pub answered: bool,
}

impl Request {
    /// Whether this EndTxn commits; it aborts otherwise.
    pub fn commits(&self) -> bool {
        assert_eq!(self.api, END_TXN);
        self.body.last() == Some(&1)
    }

    /// Producer id and epoch of an EndTxn, which stand before its last byte.
    pub fn producer(&self) -> (i64, i16) {
        assert_eq!(self.api, END_TXN);
        let end = self.body.len() - 1;
        let id = self.body[end - 10..end - 2].try_into().unwrap();
        let epoch = self.body[end - 2..end].try_into().unwrap();
        (i64::from_be_bytes(id), i16::from_be_bytes(epoch))
    }

    /// The error code of the answer to an EndTxn: after correlation id and throttle time.
    pub fn error(&self) -> i16 {
        assert_eq!(self.api, END_TXN);
        let answer = self.answer.as_ref().expect("no answer yet");
        i16::from_be_bytes(answer[8..10].try_into().unwrap())
    }
}

/// The first partition's error in the answer to a TxnOffsetCommit from version 3: correlation id,
/// tagged fields, throttle time, number of topics, a name with its length, number of partitions,
/// partition.
pub fn offset_error(request: &Request) -> i16 {
    assert_eq!(request.api, TXN_OFFSET_COMMIT);
    let answer = request.answer.as_ref().expect("no answer yet");
    let name = 4 + 1 + 4 + 1;
    let error = name + usize::from(answer[name]) + 1 + 4;
    i16::from_be_bytes(answer[error..error + 2].try_into().unwrap())
}

type Wanted = Box<dyn Fn(&Request) -> bool + Send>;

enum Fault {
    /// The request waits here.
    Hold,
    /// The broker's answer is thrown away and the client's connection cut.
    LoseAnswer,
    /// A TxnOffsetCommit reaches the broker with a generation that never was.
    WrongGeneration,
    /// The answer to a FindCoordinator names a broker at this port.
    OtherCoordinator(u16),
}

struct Rule {
    fault: Fault,
    wanted: Wanted,
    /// The number of the request that it hit.
    hit: Option<usize>,
    released: bool,
}

#[derive(Default)]
struct Ledger {
    requests: Vec<Request>,
    rules: Vec<Rule>,
    connections: Vec<Connection>,
    refusing: bool,
    refused: usize,
    cut: usize,
    closing: bool,
}

struct Connection {
    client: TcpStream,
    broker: TcpStream,
    /// It stays open towards the broker when the client has gone: something was held.
    kept: bool,
}

#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    changed: Condvar,
}

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

/// A fault that was asked for.
pub struct Planned {
    shared: Arc<Shared>,
    rule: usize,
}

impl Proxy {
    /// A proxy in front of the cluster's one broker.
    pub fn before(cluster: &Cluster) -> Self {
        let Entry { listener, broker } = cluster.entry();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                let mut ledger = accepting.lock();
                if ledger.closing {
                    return;
                }
                if ledger.refusing {
                    ledger.refused += 1;
                    continue;
                }
                let Ok(stream) = TcpStream::connect(broker) else { continue };
                accepting.open(&mut ledger, client, stream);
            }
        });
        Self { address, shared }
    }

    /// Holds the first request that is `wanted`.
    pub fn hold(&self, wanted: impl Fn(&Request) -> bool + Send + 'static) -> Planned {
        self.plan(Fault::Hold, wanted)
    }

    /// Loses the answer to the first request that is `wanted`, and cuts its connection.
    pub fn lose_answer(&self, wanted: impl Fn(&Request) -> bool + Send + 'static) -> Planned {
        self.plan(Fault::LoseAnswer, wanted)
    }

    /// The next TxnOffsetCommit presents a generation of the group that never was: the broker
    /// refuses it as after a rebalance, and the transaction is aborted.
    pub fn wrong_generation(&self) -> Planned {
        self.plan(Fault::WrongGeneration, |request| request.api == TXN_OFFSET_COMMIT)
    }

    /// The next producer that has offsets and asks for the group's coordinator is sent to `port`.
    pub fn other_coordinator(&self, port: u16) -> Planned {
        let has_offsets = AtomicBool::new(false);
        self.plan(Fault::OtherCoordinator(port), move |request| {
            has_offsets.fetch_or(request.api == ADD_OFFSETS_TO_TXN, Ordering::Relaxed);
            // The last byte is the kind of coordinator: 0 for a group's.
            let asks = request.api == FIND_COORDINATOR && request.body.last() == Some(&0);
            asks && has_offsets.load(Ordering::Relaxed)
        })
    }

    fn plan(&self, fault: Fault, wanted: impl Fn(&Request) -> bool + Send + 'static) -> Planned {
        let mut ledger = self.shared.lock();
        ledger.rules.push(Rule { fault, wanted: Box::new(wanted), hit: None, released: false });
        Planned { shared: Arc::clone(&self.shared), rule: ledger.rules.len() - 1 }
    }

    /// Cuts every connection and refuses new ones, until told otherwise.
    pub fn refuse(&self, refusing: bool) {
        let mut ledger = self.shared.lock();
        ledger.refusing = refusing;
        if refusing {
            let Ledger { connections, cut, .. } = &mut *ledger;
            for connection in connections {
                // Fails for those that are closed already.
                *cut += usize::from(connection.client.shutdown(Shutdown::Both).is_ok());
                let _ = connection.broker.shutdown(Shutdown::Both);
            }
        }
    }

    /// Connections that were refused, and that were cut.
    pub fn counts(&self) -> (usize, usize) {
        let ledger = self.shared.lock();
        (ledger.refused, ledger.cut)
    }

    /// The requests of one kind so far.
    pub fn seen(&self, api: i16) -> Vec<Request> {
        let ledger = self.shared.lock();
        ledger.requests.iter().filter(|request| request.api == api).cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse(true);
        let mut ledger = self.shared.lock();
        ledger.closing = true;
        for rule in &mut ledger.rules {
            rule.released = true;
        }
        self.shared.changed.notify_all();
        drop(ledger);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Planned {
    /// Waits until it has hit a request.
    pub fn caught(&self) -> Request {
        self.request(|_| true)
    }

    /// Waits until the broker has answered the request that it hit.
    pub fn answered(&self) -> Request {
        self.request(|request| request.answer.is_some())
    }

    /// Cuts the client off from the connection on which its request is held.
    pub fn cut_client(&self) {
        let connection = self.caught().connection;
        let mut ledger = self.shared.lock();
        ledger.cut += 1;
        ledger.connections[connection].client.shutdown(Shutdown::Both).unwrap();
    }

    /// Lets the held request go on to the broker, on the connection on which it came.
    pub fn release(&self) {
        let mut ledger = self.shared.lock();
        assert!(ledger.rules[self.rule].hit.is_some(), "nothing is held");
        ledger.rules[self.rule].released = true;
        self.shared.changed.notify_all();
    }

    fn request(&self, ready: impl Fn(&Request) -> bool) -> Request {
        let deadline = Instant::now() + PATIENCE;
        let mut ledger = self.shared.lock();
        loop {
            let hit = ledger.rules[self.rule].hit;
            if let Some(request) = hit.map(|number| &ledger.requests[number])
                && ready(request)
            {
                return request.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the fault did not happen");
            self.shared.changed.wait_for(&mut ledger, left);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    fn open(self: &Arc<Self>, ledger: &mut Ledger, client: TcpStream, broker: TcpStream) {
        for stream in [&client, &broker] {
            stream.set_nodelay(true).unwrap();
        }
        let copy = |stream: &TcpStream| stream.try_clone().unwrap();
        let number = ledger.connections.len();
        let up = (Arc::clone(self), copy(&client), copy(&broker));
        let down = (Arc::clone(self), copy(&broker), copy(&client));
        ledger.connections.push(Connection { client, broker, kept: false });
        thread::spawn(move || up.0.pass_requests(number, up.1, up.2));
        thread::spawn(move || down.0.pass_answers(number, down.1, down.2));
    }

    fn pass_requests(&self, connection: usize, mut client: TcpStream, mut broker: TcpStream) {
        while let Some(mut frame) = read_frame(&mut client) {
            self.request(connection, &mut frame);
            if write_frame(&mut broker, &frame).is_err() {
                break;
            }
        }
        if !self.lock().connections.get(connection).is_some_and(|known| known.kept) {
            let _ = broker.shutdown(Shutdown::Both);
        }
    }

    /// Notes a request, and returns when it may go on.
    fn request(&self, connection: usize, frame: &mut [u8]) {
        let mut ledger = self.lock();
        let number = ledger.requests.len();
        let request = parse(number, connection, frame);
        let hit = ledger.rules.iter_mut().position(|rule| {
            let hit = rule.hit.is_none() && (rule.wanted)(&request);
            rule.hit = rule.hit.or(hit.then_some(number));
            hit
        });
        ledger.requests.push(request);
        self.changed.notify_all();
        let Some(rule) = hit else {
            return;
        };
        if matches!(ledger.rules[rule].fault, Fault::WrongGeneration) {
            spoil_generation(frame);
        }
        if matches!(ledger.rules[rule].fault, Fault::Hold) {
            ledger.connections[connection].kept = true;
        }
        while matches!(ledger.rules[rule].fault, Fault::Hold) && !ledger.rules[rule].released {
            self.changed.wait(&mut ledger);
        }
    }

    fn pass_answers(&self, connection: usize, mut broker: TcpStream, mut client: TcpStream) {
        while let Some(mut frame) = read_frame(&mut broker) {
            let lost = self.answer(connection, &mut frame);
            if lost {
                let _ = client.shutdown(Shutdown::Both);
            } else {
                // The client may have gone: its connection to the broker is kept all the same.
                let _ = write_frame(&mut client, &frame);
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Notes an answer; whether it is to be lost.
    fn answer(&self, connection: usize, frame: &mut [u8]) -> bool {
        let mut ledger = self.lock();
        let correlation = i32::from_be_bytes(frame[..4].try_into().unwrap());
        let Ledger { requests, rules, cut, .. } = &mut *ledger;
        let request = requests
            .iter_mut()
            .rev()
            .find(|request| request.connection == connection && request.correlation == correlation);
        let request = request.expect("an answer to nothing");
        let mut hits = rules.iter().filter(|rule| rule.hit == Some(request.number));
        let fault = hits.next().map(|rule| &rule.fault);
        let lost = matches!(fault, Some(Fault::LoseAnswer));
        if let Some(Fault::OtherCoordinator(port)) = fault {
            name_another(frame, *port);
        }
        request.answer = Some(frame.to_vec());
        request.answered = !lost;
        *cut += usize::from(lost);
        self.changed.notify_all();
        lost
    }
}

/// Header: api key, api version, correlation id, client id as a string with its length.
fn parse(number: usize, connection: usize, frame: &[u8]) -> Request {
    let short = |at: usize| i16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
    let client = usize::try_from(short(8)).unwrap_or(0);
    Request {
        number,
        connection,
        api: short(0),
        correlation: i32::from_be_bytes(frame[4..8].try_into().unwrap()),
        body: frame[10 + client..].to_vec(),
        answer: None,
        answered: false,
    }
}

/// TxnOffsetCommit from version 3: tagged fields of the header, two strings (transactional id and
/// group) with their lengths + 1, producer id, epoch, generation.
fn spoil_generation(frame: &mut [u8]) {
    let client = usize::try_from(i16::from_be_bytes([frame[8], frame[9]])).unwrap_or(0);
    let mut at = 10 + client + 1;
    for _ in 0..2 {
        let length = usize::from(frame[at]);
        assert!(length < 128, "the length takes more than one byte");
        at += length;
    }
    at += 8 + 2;
    let generation = i32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    assert!((1..1000).contains(&generation), "{generation} is not a generation");
    frame[at..at + 4].copy_from_slice(&(generation + 1000).to_be_bytes());
}

/// The answer to a FindCoordinator of version 1 or 2: correlation id, throttle time, error, message,
/// which is null where there is no error, the broker's id, its host and its port.
fn name_another(frame: &mut [u8], port: u16) {
    assert_eq!(frame[8..10], [0, 0], "there is a coordinator");
    let message = i16::from_be_bytes([frame[10], frame[11]]);
    let id = 12 + usize::try_from(message).unwrap_or(0);
    frame[id..id + 4].copy_from_slice(&99_i32.to_be_bytes());
    let end = frame.len() - 4;
    frame[end..].copy_from_slice(&i32::from(port).to_be_bytes());
}

fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut size = [0; 4];
    stream.read_exact(&mut size).ok()?;
    let size = usize::try_from(i32::from_be_bytes(size)).ok()?;
    assert!(size < LARGEST_FRAME, "this is not Kafka");
    let mut frame = vec![0; size];
    stream.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    let size = i32::try_from(frame.len()).unwrap();
    stream.write_all(&[&size.to_be_bytes(), frame].concat())
}
