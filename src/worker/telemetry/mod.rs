//! What one run of the worker tells about itself: its spans, and the metrics by the messaging
//! conventions.

pub mod semconv;
pub mod spans;
pub mod step;
