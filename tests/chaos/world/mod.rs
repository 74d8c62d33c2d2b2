//! The targets of the faults, and their observers: a cluster of three brokers, workers, an object
//! store, a producer of references, a reader, and a follower of the transactions' states.

pub mod brokers;
pub mod feed;
pub mod reader;
pub mod store;
pub mod transactions;
pub mod workers;

use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::config::ClientConfig;

/// Milliseconds since 1970, as the brokers on this machine stamp their records.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as i64
}

/// A consumer's settings, for one that is assigned its partitions by hand and outlives brokers.
fn consumer(bootstrap: &str, isolation: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "chaos")
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("topic.metadata.refresh.interval.ms", "2000")
        .set("reconnect.backoff.max.ms", "1000")
        .set("fetch.error.backoff.ms", "100");
    config
}
