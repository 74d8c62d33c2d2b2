//! Metrics by OpenTelemetry's semantic conventions for messaging (1.42.0, in development). They are
//! pushed to a collector only, for tools that know the conventions; `/metrics` has the same under our
//! own names. Without a collector nothing is counted here.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::{Counter, Histogram, Meter};
use opentelemetry::{KeyValue, StringValue};
use opentelemetry_semantic_conventions::{attribute, metric};

use crate::config::Kafka;
use crate::error::ErrorKind;

/// Bounds that the conventions recommend, in seconds.
const BOUNDARIES: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The instruments; nothing where none are pushed.
#[derive(Debug)]
pub struct SemanticMetrics(Option<Instruments>);

#[derive(Debug)]
struct Instruments {
    input: StringValue,
    group: StringValue,
    consumed: Counter<u64>,
    sent: Counter<u64>,
    operation: Histogram<f64>,
    process: Histogram<f64>,
}

impl SemanticMetrics {
    /// Instruments of `meter`; none without one.
    pub fn new(meter: Option<Meter>, kafka: &Kafka) -> Self {
        Self(meter.map(|meter| {
            let counter = |name: &'static str, description: &'static str| {
                meter.u64_counter(name).with_unit("{message}").with_description(description).build()
            };
            let seconds = |name: &'static str, description: &'static str| {
                let histogram =
                    meter.f64_histogram(name).with_unit("s").with_description(description);
                histogram.with_boundaries(BOUNDARIES.to_vec()).build()
            };
            Instruments {
                input: kafka.input_topic.clone().into(),
                group: kafka.group.clone().into(),
                consumed: counter(
                    metric::MESSAGING_CLIENT_CONSUMED_MESSAGES,
                    "messages polled from the input topic",
                ),
                sent: counter(
                    metric::MESSAGING_CLIENT_SENT_MESSAGES,
                    "records of transactions, committed or not",
                ),
                operation: seconds(
                    metric::MESSAGING_CLIENT_OPERATION_DURATION,
                    "duration of polls that gave messages, and of transactions",
                ),
                process: seconds(metric::MESSAGING_PROCESS_DURATION, "from poll to commit"),
            }
        }))
    }

    /// A poll gave messages.
    pub fn polled(&self, messages: usize, took: Duration) {
        let Some(instruments) = self.0.as_ref().filter(|_| messages > 0) else {
            return;
        };
        let mut attributes = instruments.consumer("poll");
        instruments.consumed.add(messages as u64, &attributes);
        attributes.push(KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "receive"));
        instruments.operation.record(took.as_secs_f64(), &attributes);
    }

    /// A reference was answered, by a dead letter where there is a `code`.
    pub fn processed(&self, took: Duration, code: Option<ErrorKind>) {
        if let Some(instruments) = &self.0 {
            let mut attributes = instruments.consumer("process");
            attributes.extend(code.map(failure));
            instruments.process.record(took.as_secs_f64(), &attributes);
        }
    }

    /// A transaction ended, with so many records for each topic.
    pub fn ended<'t>(
        &self,
        records: impl Iterator<Item = (&'t Arc<str>, usize)>,
        took: Duration,
        failed: Option<ErrorKind>,
    ) {
        let Some(instruments) = &self.0 else {
            return;
        };
        let mut attributes = instruments.consumer("commit");
        attributes.push(KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "settle"));
        attributes.extend(failed.map(failure));
        instruments.operation.record(took.as_secs_f64(), &attributes);
        for (topic, count) in records {
            let mut attributes = vec![
                KeyValue::new(attribute::MESSAGING_SYSTEM, "kafka"),
                KeyValue::new(attribute::MESSAGING_OPERATION_NAME, "send"),
                KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, Arc::clone(topic)),
            ];
            attributes.extend(failed.map(failure));
            instruments.sent.add(count as u64, &attributes);
        }
    }
}

impl Instruments {
    fn consumer(&self, operation: &'static str) -> Vec<KeyValue> {
        vec![
            KeyValue::new(attribute::MESSAGING_SYSTEM, "kafka"),
            KeyValue::new(attribute::MESSAGING_OPERATION_NAME, operation),
            KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, self.input.clone()),
            KeyValue::new(attribute::MESSAGING_CONSUMER_GROUP_NAME, self.group.clone()),
        ]
    }
}

fn failure(kind: ErrorKind) -> KeyValue {
    KeyValue::new(attribute::ERROR_TYPE, kind.code())
}
