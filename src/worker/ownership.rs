//! The partitions that this worker owns, and the group metadata that proves it to the brokers.

use rdkafka::consumer::ConsumerGroupMetadata;

use crate::worker::exactly_once::assignment::Assignment;

pub type Ownership = Assignment<ConsumerGroupMetadata>;
