//! A real Apache Kafka for the tests: started by `scripts/kafka`, or a running one named by
//! `FUSIONCAP_TEST_KAFKA`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::root;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Entries for proxies in front of a broker of the tests' own: one for each proxy, used once.
const ENTRIES: usize = 24;

/// One broker or several, and a client for them.
pub struct Cluster {
    /// The brokers' addresses, as `bootstrap.servers` takes them.
    pub bootstrap: String,
    state: Option<PathBuf>,
    brokers: i32,
    entries: Mutex<Vec<Entry>>,
}

/// A place for a proxy in front of a broker.
pub struct Entry {
    /// Accepts clients. The broker advertises its address to those that come in through it.
    pub listener: TcpListener,
    /// Where the broker listens for the proxy.
    pub broker: SocketAddr,
}

/// One record as a `read_committed` reader sees it.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: serde_json::Value,
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// The value of a header, which must be there.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no header {name}"))
    }

    /// Partition and offset of the reference that this record answers, from its headers.
    pub fn source(&self) -> (i32, i64) {
        let number = |name| self.header(name).parse::<i64>().unwrap();
        (number("fusioncap-source-partition") as i32, number("fusioncap-source-offset"))
    }

    /// A text field of the value, which must be there.
    pub fn text(&self, field: &str) -> &str {
        self.value[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.value))
    }
}

impl Cluster {
    /// Starts `brokers` brokers that end with this process, unless `FUSIONCAP_TEST_KAFKA` names a
    /// running cluster.
    pub fn start(brokers: i32) -> Self {
        if let Ok(bootstrap) = std::env::var("FUSIONCAP_TEST_KAFKA") {
            return Self { bootstrap, state: None, brokers: 1, entries: Mutex::default() };
        }
        let entries = if brokers == 1 { ENTRIES } else { 0 };
        Self::start_own(brokers, entries, &[])
    }

    /// Starts brokers even if a running cluster is named, with `entries` for proxies and with
    /// `options` of `scripts/kafka up`.
    pub fn start_own(brokers: i32, entries: usize, options: &[&str]) -> Self {
        let state = std::env::temp_dir().join(format!("fusioncap-test-{}", uuid::Uuid::new_v4()));
        let listeners: Vec<TcpListener> =
            (0..entries).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<String> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().port().to_string())
            .collect();
        let mut up = script("up", &state);
        up.args(["--brokers", &brokers.to_string()])
            .args(["--until-exit-of", &std::process::id().to_string()])
            .args(options);
        if !ports.is_empty() {
            up.args(["--advertise", &ports.join(",")]);
        }
        let output = up.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "scripts/kafka up: {errors}");
        let bootstrap = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let behind = std::fs::read_to_string(state.join("behind")).unwrap_or_default();
        let behind = behind.split_whitespace().map(|address| address.parse().unwrap());
        let entries = listeners.into_iter().zip(behind);
        let entries = entries.map(|(listener, broker)| Entry { listener, broker }).collect();
        Self { bootstrap, state: Some(state), brokers, entries: Mutex::new(entries) }
    }

    /// An entry that no other caller gets.
    pub fn entry(&self) -> Entry {
        self.entries.lock().unwrap().pop().expect("an entry is left")
    }

    /// The folder with the files that `scripts/kafka` made.
    pub fn folder(&self) -> &Path {
        self.state.as_deref().expect("a cluster of our own")
    }

    /// Whether this process started the brokers, and therefore may kill them.
    pub fn is_ours(&self) -> bool {
        self.state.is_some()
    }

    /// Runs `kill`, `stop` or `start` for one broker.
    pub fn broker(&self, command: &str, number: i32) {
        let status = script(command, self.folder()).arg(number.to_string()).status().unwrap();
        assert!(status.success(), "scripts/kafka {command} {number}");
    }

    /// Whether broker `number` accepts connections.
    pub fn is_listening(&self, number: usize) -> bool {
        let address = self.bootstrap.split(',').nth(number - 1).expect("a broker of that number");
        TcpStream::connect(address).is_ok()
    }

    /// Creates topics for references, captions and dead letters, with `partitions`, 3 and 1
    /// partitions.
    pub async fn topics(&self, partitions: i32) -> Topics {
        self.topics_with(partitions, TopicReplication::Fixed(self.brokers.min(3))).await
    }

    /// As [`Self::topics`], with the replicas of the captions' topic placed by `output`.
    pub async fn topics_with(&self, partitions: i32, output: TopicReplication<'_>) -> Topics {
        let run = uuid::Uuid::new_v4().simple().to_string();
        let topics = Topics {
            input: format!("images.in-{run}"),
            output: format!("captions.out-{run}"),
            dead_letters: format!("images.dlq-{run}"),
            group: format!("captioners-{run}"),
        };
        let admin = self.admin();
        let copies = || TopicReplication::Fixed(self.brokers.min(3));
        let new = [
            NewTopic::new(&topics.input, partitions, copies()),
            NewTopic::new(&topics.output, 3, output),
            NewTopic::new(&topics.dead_letters, 1, copies()),
        ];
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        for result in admin.create_topics(&new, &options).await.unwrap() {
            result.unwrap();
        }
        topics
    }

    /// Sets one property of a topic and resets its others to their defaults.
    pub async fn set(&self, topic: &str, property: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(property, value);
        let changed = self.admin().alter_configs([&change], &AdminOptions::new()).await.unwrap();
        assert_eq!(changed, [Ok(OwnedResourceSpecifier::Topic(topic.to_owned()))]);
    }

    /// Raises the number of a topic's partitions to `partitions`.
    pub async fn grow(&self, topic: &str, partitions: usize) {
        let more = NewPartitions::new(topic, partitions);
        let grown = self.admin().create_partitions([&more], &AdminOptions::new()).await.unwrap();
        assert_eq!(grown, [Ok(topic.to_owned())]);
    }

    /// Commits an offset for one partition from outside the group, as an operator does.
    pub fn reset(
        &self,
        topics: &Topics,
        partition: i32,
        offset: i64,
    ) -> rdkafka::error::KafkaResult<()> {
        let consumer: BaseConsumer = self.client().set("group.id", &topics.group).create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&topics.input, partition, rdkafka::Offset::Offset(offset))?;
        consumer.commit(&list, rdkafka::consumer::CommitMode::Sync)
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    /// Produces one reference to `partition` and returns its offset.
    pub async fn produce(
        &self,
        topic: &str,
        partition: i32,
        key: &str,
        payload: &[u8],
        headers: OwnedHeaders,
    ) -> i64 {
        let producer: FutureProducer = self.client().create().unwrap();
        deliver(&producer, topic, partition, key, payload, headers).await
    }

    /// A producer for many references.
    pub fn producer(&self) -> FutureProducer {
        self.client().set("linger.ms", "5").create().unwrap()
    }

    /// All committed records of `topics`.
    pub fn read_committed(&self, topics: &[&str]) -> Vec<Record> {
        self.read(topics, record)
    }

    /// The committed payloads of a topic.
    pub fn read_values(&self, topic: &str) -> Vec<String> {
        let text = |message: &BorrowedMessage<'_>| {
            String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned()
        };
        self.read(&[topic], text)
    }

    fn read<T>(&self, topics: &[&str], each: impl Fn(&BorrowedMessage<'_>) -> T) -> Vec<T> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "reader")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut assignment = rdkafka::TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
            for partition in metadata.topics()[0].partitions() {
                assignment
                    .add_partition_offset(topic, partition.id(), rdkafka::Offset::Beginning)
                    .unwrap();
            }
        }
        consumer.assign(&assignment).unwrap();
        let (mut records, mut ended) = (Vec::new(), 0);
        let deadline = Instant::now() + TIMEOUT;
        while ended < assignment.count() {
            assert!(Instant::now() < deadline, "the reader did not reach the end");
            match consumer.poll(Duration::from_millis(200)) {
                None => {}
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
                // Another broker answers, or the same one when it is back.
                Some(Err(error))
                    if error.rdkafka_error_code()
                        == Some(RDKafkaErrorCode::BrokerTransportFailure) => {}
                Some(Err(error)) => panic!("the reader failed: {error}"),
                Some(Ok(message)) => records.push(each(&message)),
            }
        }
        records
    }

    /// Waits until `count` records are committed and returns all; panics after `patience`.
    pub fn await_records(&self, topics: &[&str], count: usize, patience: Duration) -> Vec<Record> {
        let deadline = Instant::now() + patience;
        loop {
            let records = self.read_committed(topics);
            if records.len() >= count {
                return records;
            }
            let found = records.len();
            assert!(Instant::now() < deadline, "{found} of {count} records after {patience:?}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The sum of the offsets that `group` has committed for the partitions of `topic`.
    pub fn committed(&self, group: &str, topic: &str, partitions: i32) -> i64 {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition(topic, partition);
        }
        let offsets = consumer.committed_offsets(list, TIMEOUT).unwrap();
        offsets
            .elements()
            .iter()
            .filter_map(|element| element.offset().to_raw())
            .map(|o| o.max(0))
            .sum()
    }

    /// The number of records stored in `topic`, uncommitted ones and markers included.
    pub fn stored(&self, topic: &str, partitions: i32) -> i64 {
        (0..partitions).map(|partition| self.stored_in(topic, partition)).sum()
    }

    /// The end offset of one partition.
    pub fn stored_in(&self, topic: &str, partition: i32) -> i64 {
        let consumer: BaseConsumer = self.client().create().unwrap();
        consumer.fetch_watermarks(topic, partition, TIMEOUT).unwrap().1
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            // Otherwise the script's watcher does it when this process has ended.
            let _ = script("down", state).status();
        }
    }
}

/// The names of the topics and of the consumer group of one test.
#[derive(Clone, Debug)]
pub struct Topics {
    pub input: String,
    pub output: String,
    pub dead_letters: String,
    pub group: String,
}

/// Produces one record, waits until it is stored, and returns its offset.
pub async fn deliver(
    producer: &FutureProducer,
    topic: &str,
    partition: i32,
    key: &str,
    payload: &[u8],
    headers: OwnedHeaders,
) -> i64 {
    let record =
        FutureRecord::to(topic).partition(partition).key(key).payload(payload).headers(headers);
    producer.send(record, TIMEOUT).await.map_err(|(error, _)| error).unwrap().offset
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|header| {
                let value = header.value.unwrap_or_default();
                (header.key.to_owned(), String::from_utf8_lossy(value).into_owned())
            })
            .collect()
    });
    Record {
        key: message.key().map(<[u8]>::to_vec),
        value: serde_json::from_slice(message.payload().unwrap()).unwrap(),
        headers,
    }
}

fn script(command: &str, state: &Path) -> Command {
    let mut script = Command::new(root("scripts/kafka"));
    script.arg(command).arg("--state").arg(state);
    script
}
