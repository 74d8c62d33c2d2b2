//! librdkafka's settings for the consumer and the producer.
//!
//! `kafka.properties` passes any property through except those that exactly-once delivery rests on:
//! these are refused by name, never overridden in silence. The user's properties override our
//! defaults, and the fixed settings override the user's.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::config::{Kafka, protected};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::timeouts::Timeouts;

/// librdkafka's default; the broker drops a member that is silent for longer.
const SESSION_TIMEOUT_MS: u64 = 45_000;
/// Below the session timeout: when the group gives a dead worker's partitions away, its open
/// transaction is over, or will be at the brokers' next search for such transactions (every 10 s by
/// default), and the new owner waits little or not at all for stable offsets.
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
                return Err(Error::new(ErrorKind::Config, "this property can't be set")
                    .with_context("field", format_args!("kafka.properties.{name}"))
                    .with_context("instead", instead));
            }
        }
        let session = milliseconds(kafka, &["session.timeout.ms"], SESSION_TIMEOUT_MS)?;
        let transaction = milliseconds(kafka, &["transaction.timeout.ms"], TRANSACTION_TIMEOUT_MS)?;
        let message = milliseconds(
            kafka,
            &["message.timeout.ms", "delivery.timeout.ms"],
            MESSAGE_TIMEOUT_MS.min(transaction.saturating_mul(3) / 4),
        )?;
        let heartbeat = milliseconds(kafka, &["heartbeat.interval.ms"], HEARTBEAT_INTERVAL_MS)?;
        let max_poll = milliseconds(kafka, &["max.poll.interval.ms"], MAX_POLL_INTERVAL_MS)?;
        let is_consumer = kafka.group_protocol == Kafka::CONSUMER;
        // With the consumer protocol the brokers set the session timeout themselves.
        let session = if is_consumer { session.min(max_poll) } else { session };
        let transactional_id = transactional_id(kafka)?;

        let mut common = ClientConfig::new();
        // rust-rdkafka has just queried the log level, which makes `tracing`'s per-layer filters
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
            // How long a partition with a full prefetch waits before the next fetch, even where a
            // seek has emptied it meanwhile. The default of a second would leave the model idle.
            .set("fetch.queue.backoff.ms", "20");
        if !is_consumer {
            consumer
                .set("session.timeout.ms", session.to_string())
                .set("partition.assignment.strategy", "cooperative-sticky");
        }
        let mut producer = common;
        producer
            .set("linger.ms", "5")
            // The broker refuses a transaction while it still ends the one before. The default
            // of 100 ms would be most of the time between two transactions.
            .set("retry.backoff.ms", "20");
        // JSON compresses well. The property has two names: if the user sets either, that one must
        // be the only one.
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
            // A lost connection makes the end of a transaction doubtful: `producer` reads the log.
            .set("log.connection.close", "true")
            .set("transaction.timeout.ms", transaction.to_string())
            .set("message.timeout.ms", message.to_string());
        // Each client would warn about the properties of the other.
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

    /// The same settings with a transactional id of the caller's own.
    #[must_use]
    pub fn with_transactional_id(mut self, id: String) -> Self {
        self.producer.set("transactional.id", &id);
        self.transactional_id = id;
        self
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
    // The checked value above replaces it, under its other name.
    "delivery.timeout.ms",
];

/// The id must be unique for each running process, or two of them fence each other for ever. A pod's
/// host name is unique; in a StatefulSet it is also stable, so that a successor ends the dead pod's
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
        return Err(Error::new(ErrorKind::Config, "the host has no name for a transactional id")
            .with_context("field", "kafka.transactional_id")
            .with_context("allowed", "any id that no other running worker has"));
    };
    Ok(format!("{}-{host}", kafka.group))
}

/// The user's value of the first property of `names` that is set.
fn milliseconds(kafka: &Kafka, names: &[&str], default: u64) -> Result<u64> {
    let set = names.iter().find_map(|name| Some((*name, kafka.properties.get(*name)?)));
    let Some((name, value)) = set else {
        return Ok(default);
    };
    value.trim().parse().map_err(|_| {
        Error::new(ErrorKind::Config, "not a number")
            .with_context("field", format_args!("kafka.properties.{name}"))
            .with_context("value", format_args!("'{value}'"))
            .with_context("allowed", "milliseconds")
    })
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
            let error = refusal(&[(name, "x")]);
            assert!(error.contains(&format!("kafka.properties.{name}")), "{error}");
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
