//! What transactions cost: the same records in the same batches, each batch with its offsets in
//! one transaction, or produced, awaited and its offsets committed, which is at least once.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::{Cluster, Topics};
use crate::{median, timed};

const ROUNDS: usize = 3;
/// Batches a round.
const ROUND: usize = 100;
/// Records a batch.
const SIZES: [usize; 3] = [8, 64, 512];
/// About the size of a caption record without its embedding.
const PAYLOAD_BYTES: usize = 700;
const TIMEOUT: Duration = Duration::from_secs(30);

type Client = ThreadedProducer<DefaultProducerContext>;

pub async fn measure(cluster: &Cluster) {
    let topics = cluster.topics(1).await;
    let bench = Bench::new(cluster, topics);
    println!(
        "\npublishing: batches of records of {PAYLOAD_BYTES} bytes, {ROUND} a round, \
         {ROUNDS} rounds"
    );
    for size in SIZES {
        let (mut plain, mut transactions) = (vec![], vec![]);
        let milliseconds = |elapsed: Duration| 1e3 * elapsed.as_secs_f64() / ROUND as f64;
        for _ in 0..ROUNDS {
            plain.push(milliseconds(timed(|| bench.plain(size))));
            transactions.push(milliseconds(timed(|| bench.transactions(size))));
        }
        let (plain, plain_range) = median(plain);
        let (transactions, range) = median(transactions);
        println!("  {size} records a batch");
        println!("    at least once {plain:7.1} ms a batch  ({plain_range})");
        println!("    transactions  {transactions:7.1} ms a batch  ({range})");
        println!("    transactions / at least once {:.1}", transactions / plain);
    }
    let written = SIZES.iter().sum::<usize>() * ROUND * ROUNDS * 2;
    let found = cluster.read_committed(&[&bench.topics.output]).len();
    assert_eq!(found, written, "records were lost or doubled");
}

struct Bench {
    plain: Client,
    transactional: Client,
    consumer: BaseConsumer,
    topics: Topics,
    payload: String,
}

impl Bench {
    fn new(cluster: &Cluster, topics: Topics) -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &cluster.bootstrap);
        let consumer = client.clone().set("group.id", &topics.group).create().unwrap();
        // The worker's own settings, with and without transactions.
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("retry.backoff.ms", "20");
        let plain = client.create().unwrap();
        client.set("transactional.id", &topics.group);
        let transactional: Client = client.create().unwrap();
        transactional.init_transactions(TIMEOUT).unwrap();
        let payload = serde_json::json!({ "caption": "x".repeat(PAYLOAD_BYTES - 14) }).to_string();
        Self { plain, transactional, consumer, topics, payload }
    }

    fn plain(&self, size: usize) {
        for batch in 0..ROUND {
            self.produce(&self.plain, size);
            await_deliveries(&self.plain);
            self.consumer.commit(&self.offsets(batch), CommitMode::Sync).unwrap();
        }
    }

    fn transactions(&self, size: usize) {
        let group = self.consumer.group_metadata().unwrap();
        for batch in 0..ROUND {
            self.transactional.begin_transaction().unwrap();
            self.produce(&self.transactional, size);
            self.transactional
                .send_offsets_to_transaction(&self.offsets(batch), &group, TIMEOUT)
                .unwrap();
            await_deliveries(&self.transactional);
            self.transactional.commit_transaction(TIMEOUT).unwrap();
        }
    }

    fn produce(&self, producer: &Client, size: usize) {
        for number in 0..size {
            let offset = number.to_string();
            let headers = OwnedHeaders::new()
                .insert(Header { key: "fusioncap-source-partition", value: Some("0") })
                .insert(Header { key: "fusioncap-source-offset", value: Some(&offset) });
            let record = BaseRecord::to(&self.topics.output)
                .key("k")
                .payload(&self.payload)
                .headers(headers);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
    }

    fn offsets(&self, next: usize) -> TopicPartitionList {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.topics.input, 0, Offset::Offset(next as i64)).unwrap();
        offsets
    }
}

/// Not `flush`, which sleeps for 100 ms when the producer's own thread takes the deliveries first.
fn await_deliveries(producer: &Client) {
    let deadline = Instant::now() + TIMEOUT;
    while producer.in_flight_count() > 0 {
        assert!(Instant::now() < deadline, "the broker takes no records");
        std::thread::sleep(Duration::from_millis(1));
    }
}
