//! Spans, as they would be exported.
