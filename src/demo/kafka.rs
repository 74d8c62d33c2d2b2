//! The Kafka of one demonstration: embedded, or a real one with topics of this run.
//!
//! The embedded Kafka is librdkafka's mock cluster. It implements the protocol, transactions
//! included, but not their guarantees: it drops the offsets that a transaction sends, does not
//! hide uncommitted records from `read_committed`, fences no producer and keeps 5 MiB a partition.
//! The tests of exactly-once delivery run on Apache Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde::de::DeserializeOwned;

use super::topics::{self, PARTITIONS};
use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{CaptionRecord, DeadLetter};
use crate::reader;

/// Pause after an error from which librdkafka recovers by itself.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait of an idle fetch, in milliseconds. A real broker answers when a record arrives;
/// the mock cluster always waits this long.
const FETCH_WAIT_MS: &str = "20";
/// Longest wait for a reference to be delivered.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The worker's answer to one reference.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Caption { caption: String, score: f32 },
    DeadLetter { code: String, reason: String },
}

/// An outcome and the id of the reference it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputRecord {
    pub id: String,
    pub outcome: Outcome,
}

/// A Kafka with the three topics of one run.
pub struct DemoKafka {
    brokers: String,
    /// Distinguishes the topics and groups of the runs on one Kafka.
    run: String,
    /// The brokers run until this is dropped.
    embedded: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl DemoKafka {
    /// Creates the topics on a new embedded Kafka, or on the real one at `brokers`.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if Kafka can't be reached or refuses to create the topics.
    pub async fn start(brokers: Option<&str>, run: &str) -> Result<Self> {
        match brokers {
            Some(real) => {
                let kafka = Self { brokers: real.into(), run: run.into(), embedded: None };
                topics::create(&kafka.client(), &kafka.topics())
                    .await
                    .map_err(|error| error.with_context("brokers", real))?;
                Ok(kafka)
            }
            None => Self::start_embedded(run).map_err(|error| {
                Error::new(ErrorKind::Kafka, "can't start the embedded Kafka").with_source(error)
            }),
        }
    }

    fn start_embedded(run: &str) -> KafkaResult<Self> {
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

    /// The section `kafka` of the worker's configuration.
    pub fn worker_config(&self) -> config::Kafka {
        let [input_topic, output_topic, dead_letter_topic] = self.topics();
        config::Kafka {
            brokers: self.brokers.clone(),
            group: self.name_in_run("fusioncap"),
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
        ["images.in", "captions.out", "images.dlq"].map(|topic| self.name_in_run(topic))
    }

    /// The name of a topic or group. A real Kafka is shared, so names there contain the run.
    fn name_in_run(&self, base: &str) -> String {
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

    /// Deletes the topics of this run on a real Kafka. A warning is logged for each that Kafka
    /// refuses to delete.
    pub async fn delete_topics(self) {
        if self.is_embedded() {
            return;
        }
        topics::delete(&self.client(), &self.topics().each_ref().map(String::as_str)).await;
    }

    /// A producer for the input topic. It connects in the background.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if librdkafka can't create it.
    pub fn reference_producer(&self) -> Result<ReferenceProducer> {
        let [topic, ..] = self.topics();
        let producer = self
            .client()
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
            .create()
            .map_err(|error| {
                Error::new(ErrorKind::Kafka, "can't create a producer").with_source(error)
            })?;
        Ok(ReferenceProducer { producer, topic })
    }

    /// A reader of both output topics from the beginning.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if librdkafka can't create its consumers.
    pub fn answer_reader(&self) -> Result<AnswerReader> {
        let [_, captions, dead_letters] = self.topics();
        Ok(AnswerReader {
            captions: self.topic_reader(&captions)?,
            dead_letters: self.topic_reader(&dead_letters)?,
        })
    }

    /// All answers of both topics. The worker must have stopped.
    ///
    /// # Errors
    /// As [`AnswerReader::next`].
    pub async fn read_answers(&self) -> Result<Vec<OutputRecord>> {
        self.answer_reader()?.read_to_end().await
    }

    fn topic_reader(&self, topic: &str) -> Result<TopicReader> {
        let mut client = self.client();
        client.extend(self.fetch_properties());
        TopicReader::new(client, topic, &self.name_in_run("fusioncap-reader")).map_err(|error| {
            Error::new(ErrorKind::Kafka, "can't read a topic")
                .with_context("topic", topic)
                .with_source(error)
        })
    }
}

/// Sends references to the input topic.
pub struct ReferenceProducer {
    producer: FutureProducer,
    topic: String,
}

impl ReferenceProducer {
    /// Sends `references`, each a key and a JSON object, and waits until all are delivered.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if one can't be delivered.
    pub async fn send(&self, references: &[(String, String)]) -> Result<()> {
        let deliveries = references.iter().map(|(key, payload)| {
            self.producer
                .send(FutureRecord::to(&self.topic).key(key).payload(payload), DELIVERY_TIMEOUT)
        });
        for delivery in future::join_all(deliveries).await {
            delivery.map_err(|(error, _)| {
                Error::new(ErrorKind::Kafka, "a reference can't be sent")
                    .with_context("topic", &self.topic)
                    .with_source(error)
            })?;
        }
        Ok(())
    }
}

/// Reads the committed records of both output topics, as any consumer of captions does.
pub struct AnswerReader {
    captions: TopicReader,
    dead_letters: TopicReader,
}

impl AnswerReader {
    /// Waits for the next answer of either topic. Cancel-safe.
    ///
    /// # Errors
    /// `ErrorKind::Kafka` if a topic can't be read; `Internal` if a record is not in the worker's
    /// format.
    pub async fn next(&mut self) -> Result<OutputRecord> {
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

    /// All answers, for a new reader: librdkafka reports the end of a partition once per end, so after
    /// [`Self::next`] it may never come.
    async fn read_to_end(mut self) -> Result<Vec<OutputRecord>> {
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

/// Logs client errors at `debug`, since librdkafka also reports the end of a partition as one.
struct DebugContext;

impl ClientContext for DebugContext {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client error");
    }
}

impl ConsumerContext for DebugContext {}

/// A consumer of one topic, and the partitions that it has read to the end.
struct TopicReader {
    topic: String,
    consumer: StreamConsumer<DebugContext>,
    at_end: BTreeSet<i32>,
}

impl TopicReader {
    fn new(mut client: ClientConfig, topic: &str, group: &str) -> KafkaResult<Self> {
        let consumer: StreamConsumer<DebugContext> = client
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create_with_context(DebugContext)?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&partitions)?;
        Ok(Self { topic: topic.into(), consumer, at_end: BTreeSet::new() })
    }

    /// The next answer, or `None` each time all partitions have been read to the end.
    async fn next<R: Record>(&mut self) -> Result<Option<OutputRecord>> {
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
                Err(error) if is_permanent(&error) => {
                    return Err(Error::new(ErrorKind::Kafka, "the answers can't be read")
                        .with_context("topic", &self.topic)
                        .with_source(error));
                }
                Err(error) => {
                    tracing::debug!(%error, "reading the answers failed; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

/// Whether reading can't succeed later. A topic that was just created may be unknown for a moment.
fn is_permanent(error: &KafkaError) -> bool {
    error.rdkafka_error_code() != Some(RDKafkaErrorCode::UnknownTopicOrPartition)
        && reader::is_permanent(error)
}

/// The format of one output topic.
trait Record: DeserializeOwned {
    fn answer(self) -> OutputRecord;
}

impl Record for CaptionRecord {
    fn answer(self) -> OutputRecord {
        let outcome = Outcome::Caption { caption: self.caption, score: self.score };
        OutputRecord { id: self.id, outcome }
    }
}

impl Record for DeadLetter {
    fn answer(self) -> OutputRecord {
        let outcome = Outcome::DeadLetter { code: self.code, reason: self.reason };
        OutputRecord { id: self.id, outcome }
    }
}

fn answer<R: Record>(message: &BorrowedMessage<'_>) -> Result<OutputRecord> {
    let record: R =
        serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|error| {
            Error::new(ErrorKind::Internal, "an answer can't be read")
                .with_context("topic", message.topic())
                .with_context("partition", message.partition())
                .with_context("offset", message.offset())
                .with_source(error)
        })?;
    Ok(record.answer())
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    /// The worker's calls in their order: the embedded Kafka must support them.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_embedded_kafka_supports_a_transaction() {
        let kafka = DemoKafka::start(None, "test").await.unwrap();
        let settings = kafka.worker_config();
        let reference = ("a".to_owned(), r#"{"uri":"s3://b/a"}"#.to_owned());
        kafka.reference_producer().unwrap().send(&[reference]).await.unwrap();

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
        producer.init_transactions(DELIVERY_TIMEOUT).unwrap();
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
            .send_offsets_to_transaction(
                &offsets,
                &consumer.group_metadata().unwrap(),
                DELIVERY_TIMEOUT,
            )
            .unwrap();
        producer.commit_transaction(DELIVERY_TIMEOUT).unwrap();

        let outcome =
            Outcome::DeadLetter { code: "empty_object".into(), reason: "no bytes".into() };
        let expected = OutputRecord { id: "a".into(), outcome };
        let mut answers = kafka.answer_reader().unwrap();
        assert_eq!(answers.next().await.unwrap(), expected);
        for _ in 0..2 {
            assert_eq!(kafka.read_answers().await.unwrap(), std::slice::from_ref(&expected));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_topic_that_may_not_be_read_ends_the_reading() {
        let kafka = DemoKafka::start(None, "test").await.unwrap();
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        kafka.embedded.as_ref().unwrap().request_errors(RDKafkaApiKey::Fetch, &[refusal; 10]);
        let mut answers = kafka.answer_reader().unwrap();
        let read = tokio::time::timeout(DELIVERY_TIMEOUT, answers.next()).await;
        let error = read.expect("an answer or an error").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Kafka);
        assert!(error.to_string().contains("topic: "), "{error}");
    }

    #[test]
    fn a_new_topic_may_be_unknown_for_a_moment() {
        let permanent = |code| is_permanent(&KafkaError::MessageConsumption(code));
        assert!(permanent(RDKafkaErrorCode::TopicAuthorizationFailed));
        assert!(!permanent(RDKafkaErrorCode::UnknownTopicOrPartition));
        assert!(!permanent(RDKafkaErrorCode::BrokerTransportFailure));
    }
}
