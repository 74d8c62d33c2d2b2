//! How long captions stay away when a worker dies or the broker was away, and how long an orderly
//! end takes, on a real Kafka broker.
//!
//! Two workers share the partitions of a steady stream of references. One is killed while it has
//! work in flight, and the time is taken from then until captions committed by another worker are
//! there for each of its partitions. It is frozen for a moment before it is killed, so that nothing
//! of its own can be taken for its successor's. Three ways to go on:
//!
//! - its transactional id is random: nobody replaces it, the survivor takes over;
//! - the id is stable: a replacement starts at once under the same one, and ends its transaction;
//! - `kafka.group_instance_id` is stable too: the replacement is given its partitions back.
//!
//! Then the broker is killed and started again after a while: the time from when it listens again
//! until each partition has a new caption. And SIGTERM under load: the time to the exit.
//! `make recovery`; some of it: `make recovery ARGS="short drain"`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kit::bucket::{Bucket, picture};
use kit::kafka::{Cluster, Topics};
use kit::process::{Configuration, Worker};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

const PARTITIONS: i32 = 6;
const ROUNDS: usize = 5;
const PICTURES: usize = 50;
const SOURCE: &str = "fusioncap-source-partition";
/// References a second: what two workers do without effort, so that none waits in a queue.
const RATE: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(180);
/// As `Configuration` has them; without them the worker's own defaults hold.
const SHORT: &str = "    session.timeout.ms: 9000\n    transaction.timeout.ms: 8000\n    \
                     message.timeout.ms: 6000\n";

/// Nothing that the dead one had sent is on its way any more.
const STILL: Duration = Duration::from_millis(500);

/// Each takes a minute and more.
const OUTAGE_ROUNDS: usize = 3;
/// How long the broker is away: less than a session lasts, and more.
const OUTAGES: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(70)];

/// The successor of a dead worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    Survivor,
    SameId,
    SameMember,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `make bench` runs all benchmarks; this one takes its time and has to be asked for.
    if !arguments.iter().any(|argument| argument == "recovery") {
        return;
    }
    let parts = ["short", "default", "outage", "drain"];
    let asked: Vec<&str> =
        parts.into_iter().filter(|part| arguments.iter().any(|word| word == part)).collect();
    let wanted = |part: &str| asked.is_empty() || asked.contains(&part);

    let cluster = Cluster::start(1);
    println!("{:<70}{:>9}{:>18}", format!("seconds, {ROUNDS} rounds"), "median", "range");
    for (part, timeouts) in [("short", "session 9 s"), ("default", "session 45 s")] {
        for (successor, told) in [
            (Successor::Survivor, "random id, the survivor"),
            (Successor::SameId, "stable id, a replacement"),
            (Successor::SameMember, "stable id and instance id, a replacement"),
        ] {
            if wanted(part) {
                let mut all = Vec::new();
                for _ in 0..ROUNDS {
                    all.push(death(&cluster, part == "short", successor).await);
                }
                row(&format!("SIGKILL, {timeouts}: {told}"), &all);
            }
        }
    }
    if wanted("outage") {
        for away in OUTAGES {
            let mut all = Vec::new();
            for _ in 0..OUTAGE_ROUNDS {
                all.push(outage(away).await);
            }
            let rounds = format!("session 45 s ({OUTAGE_ROUNDS} rounds)");
            row(&format!("Kafka away for {} s, {rounds}", away.as_secs()), &all);
        }
    }
    if wanted("drain") {
        let (mut seconds, mut held) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (end, in_flight) = drain(&cluster).await;
            seconds.push(end);
            held.push(in_flight);
        }
        row("SIGTERM under load, to the exit", &seconds);
        row("  references in flight at the signal", &held);
    }
}

fn row(name: &str, values: &[f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let range = format!("{:.1} to {:.1}", sorted[0], sorted[sorted.len() - 1]);
    println!("{name:<70}{:>9.1}{range:>18}", sorted[sorted.len() / 2]);
}

/// Seconds from the death of one of two workers to a caption in each of its partitions.
async fn death(cluster: &Cluster, short: bool, successor: Successor) -> f64 {
    let scene = Scene::new(cluster).await;
    let survivor = scene.worker("one", short, successor);
    let killed = scene.worker("two", short, successor);
    let (mut survivor, mut victim) = (survivor.start(), killed.start());
    survivor.await_ready();
    victim.await_ready();
    let half = PARTITIONS as usize / 2;
    await_true(&victim, || assigned(&victim).len() == half && assigned(&survivor).len() == half);
    let orphaned = assigned(&victim);
    let stream = Stream::start(cluster, &scene.topics, Duration::from_millis(1_000 / RATE));
    let watch = Watch::start(cluster, &scene.topics);
    let start = Instant::now();
    await_true(&victim, || watch.since(start, &orphaned).len() == orphaned.len());
    await_true(&victim, || victim.metric("fusioncap_in_flight_references") >= 1.0);
    let death = Instant::now();
    victim.signal("STOP");
    std::thread::sleep(STILL);
    victim.kill();
    let _replacement = (successor != Successor::Survivor).then(|| killed.start());
    await_true(&survivor, || watch.since(death + STILL, &orphaned).len() == orphaned.len());
    let times = watch.since(death + STILL, &orphaned);
    stream.stop();
    (*times.values().max().expect("partitions") - death).as_secs_f64()
}

/// Seconds from when the only broker listens again, after it was `away`, to a new caption in each
/// partition of two static members with the default time-outs.
async fn outage(away: Duration) -> f64 {
    // Its own, since one that is named by the environment is not to be killed.
    let cluster = Cluster::start_own(1, 0, &[]);
    let scene = Scene::new(&cluster).await;
    let [one, two] =
        ["one", "two"].map(|name| scene.worker(name, false, Successor::SameMember).start());
    let half = PARTITIONS as usize / 2;
    await_true(&one, || assigned(&one).len() == half && assigned(&two).len() == half);
    let all: BTreeSet<i32> = (0..PARTITIONS).collect();
    let stream = Stream::start(&cluster, &scene.topics, Duration::from_millis(1_000 / RATE));
    let watch = Watch::start(&cluster, &scene.topics);
    let start = Instant::now();
    await_true(&one, || watch.since(start, &all).len() == all.len());
    cluster.broker("kill", 1);
    assert!(!cluster.is_listening(1), "the broker is still there");
    std::thread::sleep(away);
    cluster.broker("start", 1);
    await_true(&one, || cluster.is_listening(1));
    let back = Instant::now();
    await_true(&one, || watch.since(back, &all).len() == all.len());
    let times = watch.since(back, &all);
    stream.stop();
    (*times.values().max().expect("partitions") - back).as_secs_f64()
}

/// Seconds from SIGTERM to the exit, and the references in flight at the signal.
async fn drain(cluster: &Cluster) -> (f64, f64) {
    let scene = Scene::new(cluster).await;
    let mut worker = scene.worker("one", true, Successor::Survivor).start();
    worker.await_ready();
    let stream = Stream::start(cluster, &scene.topics, Duration::ZERO);
    let full = || worker.metric("fusioncap_in_flight_references") >= 100.0;
    await_true(&worker, || full() && worker.metric("fusioncap_captions_total") >= 50.0);
    let in_flight = worker.metric("fusioncap_in_flight_references");
    let signal = Instant::now();
    worker.signal("TERM");
    let status = worker.wait(PATIENCE);
    let seconds = signal.elapsed().as_secs_f64();
    stream.stop();
    assert!(status.success(), "{}", worker.log());
    (seconds, in_flight)
}

fn await_true(worker: &Worker, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "waited in vain:\n{}", worker.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The partitions that a worker's log says it has.
fn assigned(worker: &Worker) -> BTreeSet<i32> {
    let log = worker.log();
    let Some((_, rest)) = log.rsplit_once("\"assigned\":\"[") else {
        return BTreeSet::new();
    };
    let list = rest.split(']').next().unwrap_or_default();
    list.split(", ").filter_map(|number| number.parse().ok()).collect()
}

/// Topics and pictures of one round.
struct Scene<'a> {
    cluster: &'a Cluster,
    topics: Topics,
    bucket: Bucket,
}

impl<'a> Scene<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let (topics, bucket) = (cluster.topics(PARTITIONS).await, Bucket::start());
        for number in 0..PICTURES {
            bucket.put(&format!("{number}.png"), &picture(number as u32));
        }
        Self { cluster, topics, bucket }
    }

    fn worker(&self, name: &str, short: bool, successor: Successor) -> Configuration {
        let made = Configuration::new(name, self.cluster, &self.topics, &self.bucket)
            .without_coalescing()
            .replacing("runtime:\n", "runtime:\n  intra_threads: 1\n  decode_threads: 1\n");
        let made =
            if short { made } else { made.replacing(&format!("  properties:\n{SHORT}"), "") };
        let id = format!("{}-{name}", self.topics.group);
        match successor {
            Successor::Survivor => {
                let random = format!("{}-{}", self.topics.group, uuid::Uuid::new_v4());
                made.replacing(&id, &random)
            }
            Successor::SameId => made,
            Successor::SameMember => made
                .replacing("  input_topic:", &format!("  group_instance_id: {id}\n  input_topic:")),
        }
    }
}

/// References that come until it is stopped.
struct Stream(Arc<AtomicBool>, std::thread::JoinHandle<()>);

impl Stream {
    fn start(cluster: &Cluster, topics: &Topics, pause: Duration) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (stopped, topic) = (Arc::clone(&stop), topics.input.clone());
        let producer: ThreadedProducer<DefaultProducerContext> =
            client(cluster).set("linger.ms", "5").create().unwrap();
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let uri = kit::bucket::uri(&format!("{}.png", number % PICTURES));
                let payload = json!({ "uri": uri }).to_string();
                let partition = (number % PARTITIONS as usize) as i32;
                let record = BaseRecord::to(&topic).partition(partition).key("k").payload(&payload);
                // A full queue: a stream without pauses is as fast as the broker.
                if producer.send(record).is_ok() {
                    number += 1;
                }
                std::thread::sleep(pause.max(Duration::from_micros(100)));
            }
        });
        Self(stop, thread)
    }

    fn stop(self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.join().unwrap();
    }
}

/// When each source partition's captions became readable.
struct Watch(Arc<Mutex<BTreeMap<i32, Vec<Instant>>>>, Arc<AtomicBool>);

impl Watch {
    fn start(cluster: &Cluster, topics: &Topics) -> Self {
        let (seen, stop) = (Arc::<Mutex<BTreeMap<_, Vec<_>>>>::default(), Arc::default());
        let consumer: BaseConsumer = client(cluster)
            .set("group.id", "watch")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut partitions = TopicPartitionList::new();
        let metadata = consumer.fetch_metadata(Some(&topics.output), PATIENCE).unwrap();
        for partition in metadata.topics()[0].partitions() {
            let (topic, number) = (&topics.output, partition.id());
            partitions.add_partition_offset(topic, number, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        let (written, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !AtomicBool::load(&stopped, Ordering::Relaxed) {
                let Some(polled) = consumer.poll(Duration::from_millis(100)) else {
                    continue;
                };
                // A broker that is away comes back.
                let Ok(message) = polled else {
                    continue;
                };
                let headers = message.headers().expect("headers");
                let source = headers.iter().find(|header| header.key == SOURCE).expect("a source");
                let text = std::str::from_utf8(source.value.unwrap()).unwrap();
                let time = Instant::now();
                written.lock().unwrap().entry(text.parse().unwrap()).or_default().push(time);
            }
        });
        Self(seen, stop)
    }

    /// The first caption of each of `partitions` that came after `start`.
    fn since(&self, start: Instant, partitions: &BTreeSet<i32>) -> BTreeMap<i32, Instant> {
        let seen = self.0.lock().unwrap();
        let first = |partition: &i32| {
            let times = seen.get(partition)?;
            Some((*partition, *times.iter().find(|time| **time > start)?))
        };
        partitions.iter().filter_map(first).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
    }
}

fn client(cluster: &Cluster) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &cluster.bootstrap);
    config
}
