//! The Kafka of one demonstration: embedded, or a real one, with topics of this run only.
//!
//! The embedded one is librdkafka's mock cluster. It speaks the protocol, transactions
//! included, and that is all it is for: it drops the offsets sent in a transaction, hides
//! nothing from `read_committed`, fences nobody and keeps 5 MiB a partition. It proves nothing
//! about exactly-once delivery; the tests on Apache Kafka do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde::de::DeserializeOwned;

use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{CaptionRecord, DeadLetter};

/// Partitions of each topic.
const PARTITIONS: i32 = 4;
/// Pause after an error that librdkafka recovers from by itself.
const RECOVERY_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait of an idle fetch, in milliseconds: the mock cluster sits it out to the end even
/// when a record comes, where a real broker answers at once.
const FETCH_WAIT_MS: &str = "20";
/// Longest wait for topics to be made or deleted.
const ADMIN: Duration = Duration::from_secs(10);
/// Longest wait for a reference to be delivered.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the worker answered to one reference.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Caption { caption: String, score: f32 },
    DeadLetter { code: String, reason: String },
}

/// An outcome and the id of the reference it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub id: String,
    pub outcome: Outcome,
}

/// A Kafka with the three topics of one run.
pub struct DemoKafka {
    brokers: String,
    /// Distinguishes the topics and groups of runs on the same Kafka.
    run: String,
    /// Held for its brokers, which live as long as it does.
    embedded: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl DemoKafka {
    /// Makes the topics on a new embedded Kafka, or on the real one at `brokers`.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if there is no such Kafka, or it refuses to make topics.
    pub async fn start(brokers: Option<&str>, run: &str) -> Result<Self> {
        match brokers {
            Some(real) => {
                let kafka = Self { brokers: real.into(), run: run.into(), embedded: None };
                kafka.create_topics().await?;
                Ok(kafka)
            }
            None => Self::embed(run).map_err(|error| {
                Error::new(ErrorKind::Kafka, "can't start the embedded kafka").because(error)
            }),
        }
    }

    fn embed(run: &str) -> KafkaResult<Self> {
        let cluster = MockCluster::new(1)?;
        let brokers = cluster.bootstrap_servers();
        let kafka = Self { brokers, run: run.into(), embedded: Some(cluster) };
        if let Some(cluster) = &kafka.embedded {
            for topic in kafka.topics() {
                cluster.create_topic(&topic, PARTITIONS, 1)?;
            }
        }
        Ok(kafka)
    }

    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// How the worker is told about this Kafka.
    pub fn worker_config(&self) -> config::Kafka {
        let [input_topic, output_topic, dead_letter_topic] = self.topics();
        config::Kafka {
            brokers: self.brokers.clone(),
            group: self.name("fusioncap"),
            transactional_id: None,
            group_instance_id: None,
            group_protocol: config::Kafka::CLASSIC.into(),
            input_topic,
            output_topic,
            dead_letter_topic,
            connect_timeout_ms: 10_000,
            commit_interval_ms: config::DEFAULT_COMMIT_INTERVAL_MS,
            properties: self.fetch_properties().into(),
        }
    }

    fn topics(&self) -> [String; 3] {
        ["images.in", "captions.out", "images.dlq"].map(|topic| self.name(topic))
    }

    /// A real Kafka is shared, so what this run makes there bears its name.
    fn name(&self, base: &str) -> String {
        if self.is_embedded() { base.into() } else { format!("{base}.demo-{}", self.run) }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn fetch_properties(&self) -> BTreeMap<String, String> {
        let property = ("fetch.wait.max.ms".to_owned(), FETCH_WAIT_MS.to_owned());
        self.is_embedded().then_some(property).into_iter().collect()
    }

    fn admin(&self) -> KafkaResult<AdminClient<DefaultClientContext>> {
        self.client().create()
    }

    async fn create_topics(&self) -> Result<()> {
        let refused = |error: KafkaError| {
            Error::new(ErrorKind::Kafka, "can't make the demonstration's topics")
                .with("brokers", &self.brokers)
                .because(error)
        };
        let topics = self.topics();
        // -1: as many replicas as the cluster's default says.
        let wanted: Vec<_> = topics
            .iter()
            .map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1)))
            .collect();
        let options =
            AdminOptions::new().request_timeout(Some(ADMIN)).operation_timeout(Some(ADMIN));
        let made = self.admin().map_err(refused)?.create_topics(&wanted, &options).await;
        for topic in made.map_err(refused)? {
            topic.map_err(|(_, code)| refused(KafkaError::AdminOp(code)))?;
        }
        Ok(())
    }

    /// Deletes what this run made on a real Kafka, as far as it allows that.
    pub async fn remove(self) {
        if self.is_embedded() {
            return;
        }
        let topics = self.topics();
        let names: Vec<_> = topics.iter().map(String::as_str).collect();
        let options =
            AdminOptions::new().request_timeout(Some(ADMIN)).operation_timeout(Some(ADMIN));
        let deleted = match self.admin() {
            Ok(admin) => admin.delete_topics(&names, &options).await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            tracing::warn!(%error, ?topics, "the demonstration's topics were not deleted");
        }
    }

    /// A producer of references; it connects while other things start.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if librdkafka refuses.
    pub fn references(&self) -> Result<References> {
        let [topic, ..] = self.topics();
        let producer = self
            .client()
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string())
            .create()
            .map_err(|error| {
                Error::new(ErrorKind::Kafka, "can't make a producer").because(error)
            })?;
        Ok(References { producer, topic })
    }

    /// A reader of both output topics from their beginning.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if librdkafka refuses.
    pub fn answers(&self) -> Result<Answers> {
        let [_, captions, dead_letters] = self.topics();
        Ok(Answers { captions: self.reader(&captions)?, dead_letters: self.reader(&dead_letters)? })
    }

    fn reader(&self, topic: &str) -> Result<TopicReader> {
        let mut client = self.client();
        client.extend(self.fetch_properties());
        TopicReader::new(client, topic, &self.name("fusioncap-reader")).map_err(|error| {
            Error::new(ErrorKind::Kafka, "can't read a topic").with("topic", topic).because(error)
        })
    }
}

/// The way onto the input topic.
pub struct References {
    producer: FutureProducer,
    topic: String,
}

impl References {
    /// Sends `references`, each a key and a JSON object, and waits for every delivery.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if one can't be delivered.
    pub async fn send(&self, references: &[(String, String)]) -> Result<()> {
        let deliveries = references.iter().map(|(key, payload)| {
            self.producer.send(FutureRecord::to(&self.topic).key(key).payload(payload), PATIENCE)
        });
        for delivery in future::join_all(deliveries).await {
            delivery.map_err(|(error, _)| {
                Error::new(ErrorKind::Kafka, "a reference could not be sent")
                    .with("topic", &self.topic)
                    .because(error)
            })?;
        }
        Ok(())
    }
}

/// Both output topics, read as any consumer of captions would: committed records only.
pub struct Answers {
    captions: TopicReader,
    dead_letters: TopicReader,
}

impl Answers {
    /// The next answer of either kind, in the order of arrival; waits for it.
    ///
    /// # Errors
    /// As [`Answers::rest`]. Safe to cancel.
    pub async fn next(&mut self) -> Result<Answer> {
        loop {
            let answer = tokio::select! {
                caption = self.captions.next::<CaptionRecord>() => caption?,
                dead_letter = self.dead_letters.next::<DeadLetter>() => dead_letter?,
            };
            if let Some(found) = answer {
                return Ok(found);
            }
        }
    }

    /// Every answer from here to the end of the topics, where nothing may be written any more.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if the topics can't be read, `ErrorKind::Internal` if a record is
    /// none that the worker writes.
    pub async fn rest(mut self) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while let Some(answer) = self.captions.next::<CaptionRecord>().await? {
            answers.push(answer);
        }
        while let Some(answer) = self.dead_letters.next::<DeadLetter>().await? {
            answers.push(answer);
        }
        Ok(answers)
    }
}

/// The end of a partition reaches a client as an error: no news to anybody here.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client error");
    }
}

impl ConsumerContext for Quiet {}

/// One topic, and which of its partitions have been read to their end.
struct TopicReader {
    consumer: StreamConsumer<Quiet>,
    at_end: BTreeSet<i32>,
}

impl TopicReader {
    fn new(mut client: ClientConfig, topic: &str, group: &str) -> KafkaResult<Self> {
        let consumer: StreamConsumer<Quiet> = client
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create_with_context(Quiet)?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&partitions)?;
        Ok(Self { consumer, at_end: BTreeSet::new() })
    }

    /// The next answer, or `None` each time every partition has been read to its end.
    async fn next<R: Record>(&mut self) -> Result<Option<Answer>> {
        loop {
            match self.consumer.recv().await {
                Ok(message) => {
                    self.at_end.remove(&message.partition());
                    return answer::<R>(&message).map(Some);
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    self.at_end.insert(partition);
                    if self.at_end.len() == PARTITIONS as usize {
                        return Ok(None);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "reading answers was interrupted");
                    tokio::time::sleep(RECOVERY_PAUSE).await;
                }
            }
        }
    }
}

/// A record of one of the output topics.
trait Record: DeserializeOwned {
    fn answer(self) -> Answer;
}

impl Record for CaptionRecord {
    fn answer(self) -> Answer {
        let outcome = Outcome::Caption { caption: self.caption, score: self.score };
        Answer { id: self.id, outcome }
    }
}

impl Record for DeadLetter {
    fn answer(self) -> Answer {
        let outcome = Outcome::DeadLetter { code: self.code, reason: self.reason };
        Answer { id: self.id, outcome }
    }
}

fn answer<R: Record>(message: &BorrowedMessage<'_>) -> Result<Answer> {
    let record: R =
        serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|error| {
            Error::new(ErrorKind::Internal, "an answer can't be read")
                .with("topic", message.topic())
                .with("partition", message.partition())
                .with("offset", message.offset())
                .because(error)
        })?;
    Ok(record.answer())
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

    use super::*;

    /// What the worker does, in small: the embedded Kafka must carry it.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_embedded_kafka_carries_a_transaction() {
        let kafka = DemoKafka::start(None, "test").await.unwrap();
        let settings = kafka.worker_config();
        let reference = ("a".to_owned(), r#"{"uri":"s3://b/a"}"#.to_owned());
        kafka.references().unwrap().send(&[reference]).await.unwrap();

        let consumer: StreamConsumer = kafka
            .client()
            .set("group.id", &settings.group)
            .set("group.instance.id", "worker-0")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&[&settings.input_topic]).unwrap();
        let reference = consumer.recv().await.unwrap().detach();
        assert_eq!(reference.key(), Some(b"a".as_slice()));

        let producer: ThreadedProducer<_> =
            kafka.client().set("transactional.id", "worker-0").create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let dead_letter = serde_json::json!({
            "id": "a", "uri": "s3://b/a", "code": "empty_object", "reason": "no bytes",
            "stage": "fetch", "attempts": 1, "source_topic": "images.in", "source_partition": 0,
            "source_offset": 0, "source_index": 0, "failed_at": "", "payload_base64": "",
        });
        let payload = dead_letter.to_string();
        producer
            .send(BaseRecord::to(&settings.dead_letter_topic).key("a").payload(&payload))
            .map_err(|(error, _)| error)
            .unwrap();
        let mut offsets = TopicPartitionList::new();
        let next = Offset::Offset(reference.offset() + 1);
        offsets.add_partition_offset(&settings.input_topic, reference.partition(), next).unwrap();
        producer
            .send_offsets_to_transaction(&offsets, &consumer.group_metadata().unwrap(), PATIENCE)
            .unwrap();
        producer.commit_transaction(PATIENCE).unwrap();

        let outcome =
            Outcome::DeadLetter { code: "empty_object".into(), reason: "no bytes".into() };
        let expected = Answer { id: "a".into(), outcome };
        let mut answers = kafka.answers().unwrap();
        assert_eq!(answers.next().await.unwrap(), expected);
        assert_eq!(kafka.answers().unwrap().rest().await.unwrap(), [expected]);
    }
}
