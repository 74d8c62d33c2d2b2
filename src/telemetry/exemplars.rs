//! One example a bucket of the latency histogram: the last reference there whose trace is recorded,
//! so that a dashboard leads from a slow bucket to a slow reference.
//!
//! OpenTelemetry's Rust SDK keeps no exemplars: they are kept here, beside the histogram, and
//! written where a scraper asks for OpenMetrics (`openmetrics`).

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use opentelemetry::trace::SpanContext;
use opentelemetry::{SpanId, TraceId};

/// One observation and the span in which it was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    pub value: f64,
    pub trace: TraceId,
    pub span: SpanId,
    pub time: SystemTime,
}

/// The newest exemplar of each bucket.
#[derive(Debug)]
pub struct Exemplars {
    /// Upper bounds, ascending; above the last there is one more bucket.
    bounds: &'static [f64],
    newest: Mutex<Vec<Option<Exemplar>>>,
}

impl Exemplars {
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, newest: Mutex::new(vec![None; bounds.len() + 1]) }
    }

    pub fn note(&self, value: f64, span: &SpanContext) {
        let bucket = self.bounds.iter().take_while(|bound| value > **bound).count();
        let exemplar = Exemplar {
            value,
            trace: span.trace_id(),
            span: span.span_id(),
            time: SystemTime::now(),
        };
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = newest.get_mut(bucket) {
            *place = Some(exemplar);
        }
    }

    /// The newest exemplar of the bucket whose upper bound is `bound`.
    pub fn of(&self, bound: f64) -> Option<Exemplar> {
        let place = match bound.is_finite() {
            true => self.bounds.iter().position(|known| *known == bound)?,
            false => self.bounds.len(),
        };
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.get(place).copied().flatten()
    }
}
