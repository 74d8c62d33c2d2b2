//! W3C trace context (w3.org/TR/trace-context) carried from a reference to its caption.

use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use uuid::Uuid;

use super::RawHeader;

pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";

/// Longest state passed on, in bytes: the least that the specification asks for (3.3.1.5).
const MAX_STATE: usize = 512;

/// The trace that a message belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// `version-trace id-parent id-flags`
    pub traceparent: String,
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// The context in a message's headers, if it holds a valid one.
    pub fn from_headers(headers: &[RawHeader]) -> Option<Self> {
        let find = |name: &str| {
            let header =
                headers.iter().find(|header| header.name.eq_ignore_ascii_case(name.as_bytes()));
            String::from_utf8(header?.value.clone().unwrap_or_default()).ok()
        };
        let traceparent = find(TRACEPARENT).filter(|text| is_valid(text))?;
        let tracestate = find(TRACESTATE).filter(|state| state.len() <= MAX_STATE);
        Some(Self { traceparent, tracestate })
    }

    /// The context of one of our spans, with the state of its parent.
    pub fn from_span(span: &SpanContext, tracestate: Option<String>) -> Self {
        let (trace, id) = (span.trace_id(), span.span_id());
        // Unknown flags must not be passed on (3.2.2.5).
        let flags = u8::from(span.trace_flags().is_sampled());
        Self { traceparent: format!("00-{trace}-{id}-{flags:02x}"), tracestate }
    }

    /// The remote span that `traceparent` names.
    pub fn to_span_context(&self) -> SpanContext {
        let mut parts = self.traceparent.split('-').skip(1);
        let (trace, id, flags) = (parts.next(), parts.next(), parts.next());
        let trace = trace.and_then(|hex| TraceId::from_hex(hex).ok()).unwrap_or(TraceId::INVALID);
        let id = id.and_then(|hex| SpanId::from_hex(hex).ok()).unwrap_or(SpanId::INVALID);
        let flags = flags.and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or_default();
        let state = self.tracestate.as_deref().map(TraceState::from_str);
        let state = state.and_then(Result::ok).unwrap_or_default();
        SpanContext::new(trace, id, TraceFlags::new(flags) & TraceFlags::SAMPLED, true, state)
    }

    /// A new, sampled trace.
    pub fn fresh() -> Self {
        let (trace, parent) = (Uuid::new_v4().simple(), Uuid::new_v4().as_u64_pair().0 | 1);
        Self { traceparent: format!("00-{trace}-{parent:016x}-01"), tracestate: None }
    }
}

fn is_valid(traceparent: &str) -> bool {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return false };
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let some = |text: &str| text.bytes().any(|byte| byte != b'0');
    hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && some(trace)
        && hex(parent, 16)
        && some(parent)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> Vec<RawHeader> {
        vec![RawHeader::new(TRACEPARENT, value)]
    }

    #[test]
    fn a_valid_context_is_kept_and_an_invalid_one_dropped() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceContext::from_headers(&headers(valid)).unwrap().traceparent, valid);
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for wrong in ["", "00-abc-def-01", zero, "00-4BF92F3577B34DA6A3CE929D0E0E4736-1-01"] {
            assert_eq!(TraceContext::from_headers(&headers(wrong)), None, "{wrong}");
        }
        assert!(is_valid(&TraceContext::fresh().traceparent));
    }

    #[test]
    fn a_context_becomes_a_span_and_comes_back() {
        let mut sent = headers("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03");
        sent.push(RawHeader::new(TRACESTATE, "vendor=a"));
        let given = TraceContext::from_headers(&sent).unwrap();
        let span = given.to_span_context();
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().get("vendor"), Some("a"));
        let back = TraceContext::from_span(&span, given.tracestate.clone());
        assert_eq!(back.traceparent, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let unsampled = headers("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
        assert!(!TraceContext::from_headers(&unsampled).unwrap().to_span_context().is_sampled());
    }

    #[test]
    fn a_state_too_long_to_pass_on_is_dropped() {
        let mut sent = headers("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        sent.push(RawHeader::new(TRACESTATE, vec![b'a'; MAX_STATE]));
        assert!(TraceContext::from_headers(&sent).unwrap().tracestate.is_some());
        sent[1].value = Some(vec![b'a'; MAX_STATE + 1]);
        assert_eq!(TraceContext::from_headers(&sent).unwrap().tracestate, None);
    }
}
