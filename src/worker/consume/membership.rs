//! The group metadata that a transaction presents, taken by the polling thread.
//!
//! Metadata without a member (generation -1, empty member id) makes the broker skip its check of
//! a transactional offset commit, and librdkafka hands out exactly that after a session timeout.
//! rust-rdkafka does not expose member id and generation. They are read from librdkafka before and
//! after the metadata; if both readings agree, they belong to it.

use std::ffi::CStr;
use std::sync::Arc;

use rdkafka::bindings;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use crate::worker::ownership::Ownership;
use crate::worker::run::Run;

/// The consumer's place in its group.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership {
    generation: i32,
    member: Vec<u8>,
}

/// Puts the metadata of the current membership beside the assignment, if it is not there yet. `known`
/// is the membership whose metadata is there, and is updated. A consumer that is not a member leaves
/// things as they are: the broker refuses commits with the old metadata.
pub fn refresh<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    ownership: &Ownership,
    run: &Run,
    known: &mut Option<Membership>,
) {
    let before = membership(consumer);
    if before.is_none() || before == *known {
        return;
    }
    let Some(metadata) = consumer.group_metadata() else {
        return;
    };
    if membership(consumer) != before {
        return;
    }
    ownership.set_group(Arc::new(metadata));
    run.health.set_ready(true);
    tracing::debug!(generation = before.as_ref().map(|now| now.generation), "joined the group");
    *known = before;
}

/// The consumer's place in its group; None while it has none.
fn membership<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Membership> {
    // SAFETY: the client outlives the call; the metadata is a copy that is ours until destroyed,
    // its member id a NUL-terminated string inside it.
    unsafe {
        let metadata = bindings::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let generation = bindings::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member = bindings::rd_kafka_consumer_group_metadata_member_id(metadata);
        let member =
            if member.is_null() { Vec::new() } else { CStr::from_ptr(member).to_bytes().to_vec() };
        bindings::rd_kafka_consumer_group_metadata_destroy(metadata);
        (generation >= 0 && !member.is_empty()).then_some(Membership { generation, member })
    }
}
