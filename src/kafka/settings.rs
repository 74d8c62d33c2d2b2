//! librdkafka's settings for the consumer and the producer, and what is refused.
//!
//! `kafka.properties` passes any property through but those that exactly-once delivery rests on:
//! these are refused by name, never overridden in silence. Our own defaults stand below the
//! user's properties, the fixed ones above.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::config::{Kafka, Properties, protected};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::timeouts::Timeouts;

/// librdkafka's default; the broker drops a member that is silent for longer.
const SESSION_TIMEOUT_MS: u64 = 45_000;
/// Below the session timeout: when the group gives a dead worker's partitions away, its open
/// transaction is already over, and the new owner need not wait for stable offsets.
const TRANSACTION_TIMEOUT_MS: u64 = 40_000;
/// Below the transaction timeout: a record that can't be delivered fails while its transaction
/// can still be aborted.
const MESSAGE_TIMEOUT_MS: u64 = 30_000;
/// librdkafka's defaults.
const HEARTBEAT_INTERVAL_MS: u64 = 3_000;
const MAX_POLL_INTERVAL_MS: u64 = 300_000;

/// The checked settings of both clients.
#[derive(Clone, Debug)]
pub struct Clients {
    pub consumer: ClientConfig,
    pub producer: ClientConfig,
    pub transactional_id: String,
    pub timeouts: Timeouts,
}

impl Clients {
    /// # Errors
    /// `ErrorKind::Config`, naming the property that is refused or contradicts another.
    pub fn new(kafka: &Kafka) -> Result<Self> {
        for name in kafka.properties.keys() {
            if let Some(instead) = protected(name) {
                return Err(Error::new(ErrorKind::Config, "a property is not to be set")
                    .with("field", format_args!("kafka.properties.{name}"))
                    .with("instead", instead));
            }
        }
        let session = number(kafka, &["session.timeout.ms"], SESSION_TIMEOUT_MS)?;
        let transaction = number(kafka, &["transaction.timeout.ms"], TRANSACTION_TIMEOUT_MS)?;
        let message = number(
            kafka,
            &["message.timeout.ms", "delivery.timeout.ms"],
            MESSAGE_TIMEOUT_MS.min(transaction.saturating_mul(3) / 4),
        )?;
        let heartbeat = number(kafka, &["heartbeat.interval.ms"], HEARTBEAT_INTERVAL_MS)?;
        let max_poll = number(kafka, &["max.poll.interval.ms"], MAX_POLL_INTERVAL_MS)?;
        let is_consumer = kafka.group_protocol == Kafka::CONSUMER;
        // There the brokers set it, for themselves.
        let session = if is_consumer { session.min(max_poll) } else { session };
        let transactional_id = transactional_id(kafka)?;

        let mut common = ClientConfig::new();
        // rust-rdkafka has just asked for the log level, which makes `tracing`'s per-layer filters
        // drop this thread's next event: better this one than an important one.
        tracing::info!("kafka clients configured");
        common.set_log_level(RDKafkaLogLevel::Info);
        common.set("client.id", "fusioncap");
        let mut consumer = common.clone();
        consumer
            .set("auto.offset.reset", "earliest")
            // A seek throws the prefetch away; a small one also keeps memory flat.
            .set("queued.min.messages", "500")
            .set("queued.max.messages.kbytes", "8192")
            // How long a partition with enough of them waits to be fetched from again, taken or
            // thrown away meanwhile or not. The default of a second would leave the model idle.
            .set("fetch.queue.backoff.ms", "20");
        if !is_consumer {
            consumer
                .set("session.timeout.ms", session.to_string())
                .set("partition.assignment.strategy", "cooperative-sticky");
        }
        let mut producer = common;
        producer
            .set("linger.ms", "5")
            // The broker refuses a transaction while it still ends the one before; with the
            // default of 100 ms that would be most of the time between two of them.
            .set("retry.backoff.ms", "20");
        // Captions are JSON that repeats itself. The property has two names: a user's, whichever it
        // is, must be the only one.
        let names = ["compression.type", "compression.codec"];
        if !names.iter().any(|name| kafka.properties.contains_key(*name)) {
            producer.set("compression.type", "zstd");
        }
        for (name, value) in &kafka.properties {
            consumer.set(name, value);
            producer.set(name, value);
        }
        consumer
            .set("bootstrap.servers", &kafka.brokers)
            .set("group.id", &kafka.group)
            .set("group.protocol", &kafka.group_protocol)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("allow.auto.create.topics", "false");
        if let Some(instance) = &kafka.group_instance_id {
            consumer.set("group.instance.id", instance);
        }
        producer
            .set("bootstrap.servers", &kafka.brokers)
            .set("transactional.id", &transactional_id)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // A lost connection makes the end of a transaction doubtful: `producer` listens.
            .set("log.connection.close", "true")
            .set("transaction.timeout.ms", transaction.to_string())
            .set("message.timeout.ms", message.to_string());
        // One client's properties mean nothing to the other, which would warn about each.
        for (client, others) in [(&mut consumer, PRODUCER_ONLY), (&mut producer, CONSUMER_ONLY)] {
            for name in others {
                client.remove(name);
            }
        }
        Ok(Self {
            consumer,
            producer,
            transactional_id,
            timeouts: Timeouts {
                message: Duration::from_millis(message),
                transaction: Duration::from_millis(transaction),
                session: Duration::from_millis(session),
                heartbeat: Duration::from_millis(heartbeat),
                max_poll: Duration::from_millis(max_poll),
            },
        })
    }
}

const PRODUCER_ONLY: &[&str] = &[
    "transaction.timeout.ms",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "linger.ms",
    "queue.buffering.max.ms",
    "batch.size",
    "batch.num.messages",
    "compression.type",
    "compression.codec",
    "retries",
    "partitioner",
];

const CONSUMER_ONLY: &[&str] = &[
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "auto.offset.reset",
    "queued.min.messages",
    "queued.max.messages.kbytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "max.partition.fetch.bytes",
    "check.crcs",
    // Replaced by the checked value above, whichever of its two names was used.
    "delivery.timeout.ms",
];

/// Unique for each running worker, or two of them fence each other for ever. The host name is so
/// for pods, and stable for those of a StatefulSet, whose successor then ends the dead one's
/// transaction at once. Several workers on one host need `kafka.transactional_id`.
fn transactional_id(kafka: &Kafka) -> Result<String> {
    if let Some(id) = &kafka.transactional_id {
        return Ok(id.clone());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    let Some(host) = host else {
        return Err(Error::new(ErrorKind::Config, "the host has no name to tell workers apart by")
            .with("field", "kafka.transactional_id")
            .with("allowed", "any id that no other running worker has"));
    };
    Ok(format!("{}-{host}", kafka.group))
}

fn number(kafka: &Kafka, names: &[&str], default: u64) -> Result<u64> {
    let set = names.iter().find_map(|name| Some((*name, kafka.properties.get(*name)?)));
    let Some((name, value)) = set else {
        return Ok(default);
    };
    value.trim().parse().map_err(|_| {
        Error::new(ErrorKind::Config, "not a number")
            .with("field", format_args!("kafka.properties.{name}"))
            .with("value", format_args!("'{value}'"))
            .with("allowed", "milliseconds")
    })
}

/// An error of librdkafka about its settings.
pub fn creation_error(error: KafkaError) -> Error {
    if let KafkaError::ClientConfig(_, why, name, value) = &error {
        let shown = if Properties::is_secret(name) { "******" } else { value.as_str() };
        return Error::new(ErrorKind::Config, "librdkafka refuses a property")
            .with("field", format_args!("kafka.properties.{name}"))
            .with("value", format_args!("'{shown}'"))
            .because(why.trim().to_owned());
    }
    Error::new(ErrorKind::Config, "librdkafka refuses the settings")
        .with("section", "kafka")
        .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kafka(properties: &[(&str, &str)]) -> Kafka {
        let mut kafka: Kafka = serde_yaml_ng::from_str("brokers: localhost:9092").unwrap();
        let owned = properties.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        kafka.properties = owned.collect();
        kafka
    }

    fn refusal(properties: &[(&str, &str)]) -> String {
        let error = Clients::new(&kafka(properties)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    }

    #[test]
    fn what_exactly_once_rests_on_is_fixed() {
        let clients = Clients::new(&kafka(&[("linger.ms", "20")])).unwrap();
        let consumer = |name| clients.consumer.get(name);
        assert_eq!(consumer("isolation.level"), Some("read_committed"));
        assert_eq!(consumer("enable.auto.commit"), Some("false"));
        assert_eq!(consumer("enable.auto.offset.store"), Some("false"));
        assert_eq!(consumer("partition.assignment.strategy"), Some("cooperative-sticky"));
        assert_eq!(consumer("auto.offset.reset"), Some("earliest"));
        assert_eq!(consumer("linger.ms"), None);
        assert_eq!(consumer("group.protocol"), Some("classic"));
        let producer = |name| clients.producer.get(name);
        assert_eq!(producer("enable.idempotence"), Some("true"));
        assert_eq!(producer("acks"), Some("all"));
        assert_eq!(producer("log.connection.close"), Some("true"));
        assert_eq!(producer("linger.ms"), Some("20"));
        assert!(producer("transactional.id").unwrap().starts_with("fusioncap-"));
    }

    #[test]
    fn what_it_rests_on_is_refused() {
        for name in [
            "bootstrap.servers",
            "group.id",
            "group.instance.id",
            "transactional.id",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "isolation.level",
            "enable.idempotence",
            "acks",
            "group.protocol",
            "partition.assignment.strategy",
            "enable.partition.eof",
            "log.connection.close",
        ] {
            let told = refusal(&[(name, "x")]);
            assert!(told.contains(&format!("kafka.properties.{name}")), "{told}");
        }
    }

    #[test]
    fn timeouts_are_read() {
        let defaults = Clients::new(&kafka(&[])).unwrap().timeouts;
        assert!(defaults.message < defaults.transaction && defaults.transaction < defaults.session);
        assert!(refusal(&[("transaction.timeout.ms", "soon")]).contains("'soon'"));
        let short = Clients::new(&kafka(&[("transaction.timeout.ms", "10000")])).unwrap().timeouts;
        assert_eq!(short.message, Duration::from_millis(7_500));
        let given = Clients::new(&kafka(&[("delivery.timeout.ms", "9000")])).unwrap().timeouts;
        assert_eq!(given.message, Duration::from_secs(9));
    }

    #[test]
    fn captions_are_compressed_as_the_user_says_or_by_zstd() {
        fn producer(properties: &[(&str, &str)]) -> ClientConfig {
            Clients::new(&kafka(properties)).unwrap().producer
        }
        assert_eq!(producer(&[]).get("compression.type"), Some("zstd"));
        for name in ["compression.type", "compression.codec"] {
            let chosen = producer(&[(name, "none")]);
            let set = ["compression.type", "compression.codec"].map(|name| chosen.get(name));
            assert_eq!(set.into_iter().flatten().collect::<Vec<_>>(), ["none"]);
        }
    }

    #[test]
    fn other_properties_reach_the_client_they_are_for() {
        let clients = Clients::new(&kafka(&[
            ("security.protocol", "SASL_SSL"),
            ("auto.offset.reset", "latest"),
            ("delivery.timeout.ms", "20000"),
        ]))
        .unwrap();
        assert_eq!(clients.consumer.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(clients.producer.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(clients.consumer.get("auto.offset.reset"), Some("latest"));
        assert_eq!(clients.producer.get("auto.offset.reset"), None);
        assert_eq!(clients.producer.get("message.timeout.ms"), Some("20000"));
        assert_eq!(clients.producer.get("delivery.timeout.ms"), None);
    }
}
