//! The cost of transactions: the same records in the same batches, each batch with its offsets in
//! one transaction, or produced, awaited and its offsets committed, which is at least once. By
//! itself, and beside a model that captions, as in the worker, where it costs no more than the
//! processor time that the model lacks.

use std::time::{Duration, Instant};

use kit::kafka::{Cluster, Topics};
use kit::table;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::{median, throughput, timed};

const ROUNDS: usize = 3;
/// Batches a round.
const ROUND: usize = 100;
/// Records a batch.
const SIZES: [usize; 3] = [8, 64, 512];
/// About the size of a caption record without its embedding.
const PAYLOAD_BYTES: usize = 700;
const TIMEOUT: Duration = Duration::from_secs(30);
const MODEL_ROUNDS: usize = 5;
const MODEL_BATCHES: usize = 12;

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
    beside_the_model(&bench);
    let written = 2 * MODEL_ROUNDS * MODEL_BATCHES * throughput::BATCH
        + SIZES.iter().sum::<usize>() * ROUND * ROUNDS * 2;
    let found = cluster.read_committed(&[&bench.topics.output]).len();
    assert_eq!(found, written, "records were lost or doubled");
}

/// The model captions batch after batch; what is captioned is published by another thread.
fn beside_the_model(bench: &Bench) {
    let mut engine = throughput::load("models/tiny", throughput::BATCH);
    let photos = throughput::photos();
    let pixels = throughput::decode(&engine, &photos, throughput::BATCH.div_ceil(photos.len()));
    let batch: Vec<&[u8]> = pixels.iter().take(throughput::BATCH).map(Vec::as_slice).collect();
    let mut rate = |publish: &(dyn Fn(usize) + Sync)| {
        let (captioned, inbox) = std::sync::mpsc::sync_channel(MODEL_BATCHES);
        let elapsed = timed(|| {
            std::thread::scope(|scope| {
                scope.spawn(move || inbox.iter().for_each(publish));
                for number in 0..MODEL_BATCHES {
                    engine.caption(&batch).unwrap();
                    captioned.send(number).unwrap();
                }
                drop(captioned);
            });
        });
        (MODEL_BATCHES * throughput::BATCH) as f64 / elapsed.as_secs_f64()
    };
    let (mut plain, mut transactions) = (vec![], vec![]);
    for _ in 0..MODEL_ROUNDS {
        plain.push(rate(&|number| bench.plain_batch(number, throughput::BATCH)));
        transactions.push(rate(&|number| bench.transaction(number, throughput::BATCH)));
    }
    let (plain, plain_range) = median(plain);
    let (transactions, range) = median(transactions);
    println!("  beside models/tiny, {} records a batch", throughput::BATCH);
    println!("    at least once {plain:7.1} images/s  ({plain_range})");
    println!("    transactions  {transactions:7.1} images/s  ({range})");
    table::head("transactions");
    table::row("captioning with transactions / at least once", transactions / plain, Some(0.97));
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
        (0..ROUND).for_each(|batch| self.plain_batch(batch, size));
    }

    fn plain_batch(&self, batch: usize, size: usize) {
        self.produce(&self.plain, size);
        await_deliveries(&self.plain);
        self.consumer.commit(&self.offsets(batch), CommitMode::Sync).unwrap();
    }

    fn transactions(&self, size: usize) {
        (0..ROUND).for_each(|batch| self.transaction(batch, size));
    }

    fn transaction(&self, batch: usize, size: usize) {
        let group = self.consumer.group_metadata().unwrap();
        self.transactional.begin_transaction().unwrap();
        self.produce(&self.transactional, size);
        self.transactional
            .send_offsets_to_transaction(&self.offsets(batch), &group, TIMEOUT)
            .unwrap();
        await_deliveries(&self.transactional);
        self.transactional.commit_transaction(TIMEOUT).unwrap();
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
