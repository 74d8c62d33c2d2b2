//! The record headers: their names, and those of a record's source, written and parsed.

use super::RawHeader;
use super::position::SourcePosition;
use super::trace_context::{TRACEPARENT, TRACESTATE, TraceContext};

pub const SOURCE_TOPIC: &str = "fusioncap-source-topic";
pub const SOURCE_PARTITION: &str = "fusioncap-source-partition";
pub const SOURCE_OFFSET: &str = "fusioncap-source-offset";
pub const SOURCE_INDEX: &str = "fusioncap-source-index";
pub const ETAG: &str = "fusioncap-etag";
pub const MODEL_DIGEST: &str = "fusioncap-model-digest";
pub const ERROR_CODE: &str = "fusioncap-error-code";
/// On a marker: the dead letter that was redriven, `topic/partition/offset`.
pub const REDRIVEN: &str = "fusioncap-redriven";
/// On a reference: the dead letter that it was redriven from, `topic/partition/offset`.
pub const REDRIVEN_FROM: &str = "fusioncap-redriven-from";
/// On a reference: how often its image has been redriven.
pub const REDRIVEN_TIMES: &str = "fusioncap-redriven-times";
/// On a reference: the id that its image keeps.
pub const REDRIVEN_ID: &str = "fusioncap-redriven-id";

/// The headers of every output record: its source and its trace. Numbers are decimal text.
pub fn source_headers(
    source: &SourcePosition,
    index: usize,
    trace: &TraceContext,
) -> Vec<(&'static str, Vec<u8>)> {
    let mut headers = vec![
        (SOURCE_TOPIC, source.topic.as_bytes().to_vec()),
        (SOURCE_PARTITION, source.partition.to_string().into_bytes()),
        (SOURCE_OFFSET, source.offset.to_string().into_bytes()),
        (SOURCE_INDEX, index.to_string().into_bytes()),
        (TRACEPARENT, trace.traceparent.clone().into_bytes()),
    ];
    if let Some(state) = &trace.tracestate {
        headers.push((TRACESTATE, state.clone().into_bytes()));
    }
    headers
}

/// The image that a record answers: its reference's position and its index in the message. None
/// where the headers are absent or malformed.
pub fn parse_source(headers: &[RawHeader]) -> Option<(SourcePosition, usize)> {
    let text = |name| std::str::from_utf8(RawHeader::find(headers, name)?).ok();
    let offset: u64 = text(SOURCE_OFFSET)?.parse().ok()?;
    let partition: u32 = text(SOURCE_PARTITION)?.parse().ok()?;
    let position = SourcePosition {
        topic: text(SOURCE_TOPIC)?.into(),
        partition: partition.try_into().ok()?,
        offset: offset.try_into().ok()?,
    };
    Some((position, text(SOURCE_INDEX)?.parse().ok()?))
}
