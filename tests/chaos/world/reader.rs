//! Who reads the captions and the dead letters, as a consumer of them would: committed records
//! alone. One reader follows live, from the start and through everything; another reads all of it
//! again at the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kit::kafka::Topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::feed::Answered;
use crate::audit::{Answer, Audit, Entry};

/// A reader to whom nothing comes for so long has lost its topic.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct LiveReader {
    audit: Arc<Mutex<Audit>>,
    answered: Answered,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl LiveReader {
    pub fn start(bootstrap: &str, topics: &Topics) -> Self {
        let names = [topics.output.clone(), topics.dead_letters.clone()];
        let consumer = assigned(bootstrap, &names.each_ref().map(String::as_str)).0;
        let (audit, stop) = (Arc::<Mutex<Audit>>::default(), Arc::<AtomicBool>::default());
        let answered = Answered::default();
        let (written, counter, stopped) = (audit.clone(), answered.clone(), stop.clone());
        let reader = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match consumer.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => {
                        let entry = entry(&names.each_ref().map(String::as_str), &message);
                        let partition = entry.source.0;
                        if written.lock().unwrap().add(entry) {
                            counter.add(partition);
                        }
                    }
                    Some(Err(error)) => survive(&error),
                    None => {}
                }
            }
        });
        Self { audit, answered, stop, reader: Some(reader) }
    }

    /// References answered so far, counted as they come.
    pub fn answered(&self) -> Answered {
        self.answered.clone()
    }

    pub fn audit(&self) -> MutexGuard<'_, Audit> {
        self.audit.lock().unwrap()
    }

    /// Stops it; a reader that failed says so now.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the live reader reads on");
        }
    }
}

impl Drop for LiveReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Everything in the topics of captions and dead letters.
pub fn read_all(bootstrap: &str, topics: &Topics) -> Audit {
    let names = [topics.output.as_str(), topics.dead_letters.as_str()];
    let mut audit = Audit::default();
    read_to_end(bootstrap, &names, |names, message| {
        audit.add(entry(names, message));
    });
    audit
}

/// Reads every committed record of `topics` up to their ends.
pub fn read_to_end(
    bootstrap: &str,
    topics: &[&str],
    mut each: impl FnMut(&[&str], &BorrowedMessage<'_>),
) {
    let (consumer, partitions) = assigned(bootstrap, topics);
    let mut ended = 0;
    let mut last = Instant::now();
    while ended < partitions {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                each(topics, &message);
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => survive(&error),
            None => assert!(last.elapsed() < PATIENCE, "no end of {topics:?}"),
        }
    }
}

/// A consumer of all partitions of `topics` from their beginnings, and how many these are.
fn assigned(bootstrap: &str, topics: &[&str]) -> (BaseConsumer, usize) {
    let consumer: BaseConsumer = super::consumer(bootstrap, "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).unwrap();
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&partitions).unwrap();
    (consumer, partitions.count())
}

/// Brokers go and come: errors pass, but for one that would make the reader jump.
fn survive(error: &KafkaError) {
    let jumps = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset);
    assert!(!jumps, "the reader lost its place: {error}");
}

fn entry(topics: &[&str], message: &BorrowedMessage<'_>) -> Entry {
    let topic = topics.iter().position(|topic| *topic == message.topic()).expect("a topic of ours");
    let headers = message.headers().expect("headers");
    let text = |name: &str| {
        let value = headers.iter().find(|header| header.key == name)?.value?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    };
    let number = |name: &str| -> i64 {
        text(name).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
    };
    let answer = match text("fusioncap-error-code") {
        Some(code) => Answer::DeadLetter(code),
        None => Answer::Caption,
    };
    // A caption in the topic of dead letters, or the reverse, answers nothing.
    assert_eq!(answer == Answer::Caption, topic == 0, "a record in the wrong topic");
    Entry {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        source: (number("fusioncap-source-partition") as i32, number("fusioncap-source-offset")),
        answer,
    }
}
