//! The producer of references: as many as are wanted at least, and in every partition always some
//! that are unanswered, but never more than a few, so that each worker has work for as long as
//! there are faults.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kit::bucket::uri;
use rdkafka::config::ClientConfig;
use rdkafka::message::Message;
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;

use super::store::{MISSING, PAGE};
use crate::audit::{Answer, Source};

pub const PARTITIONS: i32 = 24;
/// One reference in so many is poison.
const POISON_EVERY: usize = 100;
/// So that the references of one partition go to every partition of captions.
const KEYS: usize = 97;
/// Produced to one partition at a time.
const BURST: usize = 20;

const NO_JSON: &str = "no JSON";

/// References answered so far, in each partition.
#[derive(Clone)]
pub struct Answered(Arc<Vec<AtomicUsize>>);

impl Default for Answered {
    fn default() -> Self {
        Self(Arc::new((0..PARTITIONS).map(|_| AtomicUsize::default()).collect()))
    }
}

impl Answered {
    pub fn add(&self, partition: i32) {
        self.0[partition as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn all(&self) -> usize {
        (0..self.0.len()).map(|partition| self.of(partition)).sum()
    }

    fn of(&self, partition: usize) -> usize {
        self.0[partition].load(Ordering::Relaxed)
    }
}

pub struct Feed {
    produced: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    producer: Option<JoinHandle<()>>,
}

impl Feed {
    /// At least `least` references, about `backlog` of them unanswered at a time.
    pub fn start(
        bootstrap: &str,
        topic: &str,
        least: usize,
        backlog: usize,
        answered: Answered,
    ) -> Self {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "300000")
            .set("linger.ms", "5")
            .create()
            .unwrap();
        let (produced, ending) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counter, told, topic) = (produced.clone(), ending.clone(), topic.to_owned());
        let each = backlog / PARTITIONS as usize;
        let handle = std::thread::spawn(move || {
            let mut stored = [0; PARTITIONS as usize];
            let mut total = 0;
            while !told.load(Ordering::Relaxed) || total < least {
                let mut deliveries = Vec::new();
                for (partition, count) in stored.iter_mut().enumerate() {
                    if *count <= answered.of(partition) + each {
                        *count += BURST;
                        deliveries.extend(
                            (total..total + BURST)
                                .map(|number| send(&producer, &topic, partition as i32, number)),
                        );
                        total += BURST;
                    }
                }
                if deliveries.is_empty() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                for delivery in deliveries {
                    let delivered = futures::executor::block_on(delivery).expect("an outcome");
                    delivered.map_err(|(error, _)| error).expect("a reference is delivered");
                }
                counter.store(total, Ordering::Relaxed);
            }
        });
        Self { produced, ending, producer: Some(handle) }
    }

    pub fn produced(&self) -> usize {
        self.produced.load(Ordering::Relaxed)
    }

    /// The faults are over: the references that are still wanted follow, and no more.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub fn has_ended(&mut self) -> bool {
        if self.producer.as_ref().is_some_and(|producer| !producer.is_finished()) {
            return false;
        }
        if let Some(producer) = self.producer.take() {
            producer.join().expect("every reference is delivered");
        }
        true
    }
}

fn send(producer: &FutureProducer, topic: &str, partition: i32, number: usize) -> DeliveryFuture {
    let (payload, key) = (payload(number), format!("k{}", number % KEYS));
    let record = FutureRecord::to(topic).partition(partition).key(&key).payload(&payload);
    producer.send_result(record).map_err(|(error, _)| error).expect("room for a record")
}

fn payload(number: usize) -> String {
    if number % POISON_EVERY != 7 {
        return json!({"uri": uri(&format!("{number}.png"))}).to_string();
    }
    match number / POISON_EVERY % 3 {
        0 => NO_JSON.into(),
        1 => json!({"uri": uri(MISSING)}).to_string(),
        _ => json!({"uri": uri(PAGE)}).to_string(),
    }
}

/// The right answer to a reference.
fn right(payload: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(payload);
    let code = if text == NO_JSON {
        "invalid_message"
    } else if text.contains(MISSING) {
        "object_not_found"
    } else if text.contains(PAGE) {
        "not_an_image"
    } else {
        return Answer::Caption;
    };
    Answer::DeadLetter(code.into())
}

/// Everything that was asked, as the input topic has it, and its right answer.
pub fn asked(bootstrap: &str, topic: &str) -> HashMap<Source, Answer> {
    let mut asked = HashMap::new();
    super::reader::read_to_end(bootstrap, &[topic], |_, message| {
        let payload = message.payload().expect("a payload");
        asked.insert((message.partition(), message.offset()), right(payload));
    });
    asked
}

#[test]
fn a_hundredth_is_poison_of_every_kind() {
    let mut codes: HashMap<String, usize> = HashMap::new();
    for number in 0..30_000 {
        if let Answer::DeadLetter(code) = right(payload(number).as_bytes()) {
            *codes.entry(code).or_default() += 1;
        }
    }
    let each = ["invalid_message", "object_not_found", "not_an_image"].map(|code| codes[code]);
    assert_eq!(each, [100, 100, 100]);
}
