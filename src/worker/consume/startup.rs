//! Before the worker joins its group: waits for the brokers, and checks that the topics exist.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Kafka;
use crate::error::{Error, ErrorKind, Result};
use crate::worker::consume::rebalance::Rebalancer;

/// How long the brokers may take to answer at the start.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// A topic that was just made is unknown to some brokers for a moment.
const TOPIC_PATIENCE: Duration = Duration::from_secs(5);

/// Polls that wait for librdkafka to report the cause.
const EVENTS: usize = 50;

/// Waits for a broker to answer, for `kafka.connect_timeout_ms`. Returns whether one has before
/// `stop`.
///
/// # Errors
/// `ErrorKind::Kafka` after that time, and after `METADATA_TIMEOUT` where waiting does not help:
/// Kafka refuses the credentials or the certificate.
pub fn await_brokers(
    consumer: &BaseConsumer<Rebalancer>,
    kafka: &Kafka,
    stop: impl Fn() -> bool,
) -> Result<bool> {
    let (started, limit) = (Instant::now(), Duration::from_millis(kafka.connect_timeout_ms));
    while !stop() {
        let Err(error) = topic_error(consumer, &kafka.input_topic) else {
            return Ok(true);
        };
        // Serves the queue on which librdkafka reports the cause, among other events.
        for _ in 0..EVENTS {
            let _ = consumer.poll(Duration::from_millis(5));
        }
        let (told, may_pass) = unreachable(kafka, consumer.context().last_error(), error);
        if !may_pass || started.elapsed() >= limit {
            return Err(told);
        }
        tracing::warn!(error = told.chain(), "can't reach kafka: retrying");
    }
    Ok(false)
}

/// Asks the brokers for the three topics.
///
/// # Errors
/// `ErrorKind::Kafka`: no broker answers, or a topic is missing; both name their field.
pub fn check_topics(consumer: &BaseConsumer<Rebalancer>, kafka: &Kafka) -> Result<()> {
    let topics = [
        ("kafka.input_topic", &kafka.input_topic),
        ("kafka.output_topic", &kafka.output_topic),
        ("kafka.dead_letter_topic", &kafka.dead_letter_topic),
    ];
    let deadline = Instant::now() + TOPIC_PATIENCE;
    for (field, topic) in topics {
        while let Some(code) = topic_error(consumer, topic)
            .map_err(|error| unreachable(kafka, consumer.context().last_error(), error).0)?
        {
            if code == RDKafkaErrorCode::UnknownTopicOrPartition && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
            return Err(Error::new(ErrorKind::Kafka, "a topic can't be used")
                .with_context("field", field)
                .with_context("value", topic)
                .with_source(code));
        }
    }
    Ok(())
}

/// Names what to look at when no broker has answered, and whether that may pass by itself.
fn unreachable(
    kafka: &Kafka,
    last: Option<(RDKafkaErrorCode, String)>,
    error: KafkaError,
) -> (Error, bool) {
    let told = |message| {
        Error::new(ErrorKind::Kafka, message).with_context("kafka.brokers", &kafka.brokers)
    };
    let silent = || {
        // Most often it is right, and the brokers are away; it is wrong just as silently.
        let protocol = kafka.properties.get("security.protocol");
        let protocol = protocol.map_or("plaintext", String::as_str);
        told("no Kafka broker answers").with_context("kafka.properties.security.protocol", protocol)
    };
    let Some((code, reason)) = last else {
        return (silent().with_source(error), true);
    };
    let mechanism = ["sasl.mechanism", "sasl.mechanisms"];
    let mechanism = mechanism.iter().find_map(|name| kafka.properties.get(*name));
    let told = match code {
        RDKafkaErrorCode::Authentication => {
            let field = match mechanism.map(String::as_str) {
                Some("OAUTHBEARER") => "kafka.properties.sasl.oauthbearer.*",
                _ => "kafka.properties.sasl.username, kafka.properties.sasl.password",
            };
            told("Kafka refuses the credentials").with_context("field", field)
        }
        RDKafkaErrorCode::SSL => told("no TLS connection to Kafka")
            .with_context("field", "kafka.properties.ssl.ca.location"),
        _ => silent(),
    };
    let may_pass = !matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL);
    (told.with_source(reason), may_pass)
}

fn topic_error(
    consumer: &BaseConsumer<Rebalancer>,
    topic: &str,
) -> Result<Option<RDKafkaErrorCode>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(Some(RDKafkaErrorCode::UnknownTopicOrPartition));
    };
    if let Some(error) = found.error() {
        return Ok(Some(error.into()));
    }
    Ok(found.partitions().is_empty().then_some(RDKafkaErrorCode::UnknownTopicOrPartition))
}
