//! Kafka as every part of the project speaks it: librdkafka's settings, headers byte for byte, the
//! producer of transactions. Knows nothing of captions.

mod fencing;
pub mod headers;
pub(crate) mod log;
pub mod producer;
pub(crate) mod settings;
pub(crate) mod timeouts;
pub mod transaction;
mod watchdog;
