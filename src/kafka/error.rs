//! librdkafka's errors: converted to errors of this crate, and classified by what a transaction may
//! do after them (librdkafka's INTRODUCTION.md, "Transactional error handling").

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Properties;
use crate::error::{Error, ErrorKind};

/// `error` under `message`: `ErrorKind::Kafka`, or `ErrorKind::Config` where librdkafka refuses a
/// setting.
pub fn kafka_error(message: &'static str, error: KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, why, name, value) => {
            let shown = if Properties::is_secret(&name) { "******" } else { value.as_str() };
            Error::new(ErrorKind::Config, "librdkafka refuses a property")
                .with_context("field", format_args!("kafka.properties.{name}"))
                .with_context("value", format_args!("'{shown}'"))
                .with_source(why.trim().to_owned())
        }
        KafkaError::ClientCreation(_) => {
            Error::new(ErrorKind::Config, "librdkafka refuses the settings")
                .with_context("section", "kafka")
                .with_source(error)
        }
        other => Error::new(ErrorKind::Kafka, message).with_source(other),
    }
}

/// The ways to go on after a failed call of the transaction API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The same call again, with the same arguments.
    Retriable,
    /// The transaction has to be aborted; the producer remains usable.
    Abortable,
    /// The producer is unusable. Also an error of the transaction API without any flag.
    Fatal,
}

impl ErrorClass {
    pub fn of(error: &KafkaError) -> Self {
        match error {
            KafkaError::Transaction(error) if error.is_fatal() => Self::Fatal,
            KafkaError::Transaction(error) if error.txn_requires_abort() => Self::Abortable,
            KafkaError::Transaction(error) if error.is_retriable() => Self::Retriable,
            KafkaError::Transaction(_) => Self::Fatal,
            // Producing and flushing carry no flags; a fatal state shows at the abort.
            KafkaError::MessageProduction(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::Fenced) => {
                Self::Fatal
            }
            _ => Self::Abortable,
        }
    }
}

/// Whether a producer that could not be built would fail in the same way again.
pub fn is_permanent(error: &KafkaError) -> bool {
    matches!(error, KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_))
        || matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::InvalidTransactionTimeout
                    | RDKafkaErrorCode::UnsupportedFeature
            )
        )
}

/// Whether another producer has the transactional id now.
pub fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fatal_state_makes_a_record_that_is_refused_fatal() {
        for (code, class) in [
            (RDKafkaErrorCode::QueueFull, ErrorClass::Abortable),
            (RDKafkaErrorCode::MessageSizeTooLarge, ErrorClass::Abortable),
            (RDKafkaErrorCode::Fenced, ErrorClass::Fatal),
            (RDKafkaErrorCode::Fatal, ErrorClass::Fatal),
        ] {
            assert_eq!(ErrorClass::of(&KafkaError::MessageProduction(code)), class, "{code:?}");
        }
        let flush = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
        assert_eq!(ErrorClass::of(&flush), ErrorClass::Abortable);
    }

    #[test]
    fn a_refused_property_is_a_configuration_error() {
        let refused = rdkafka::ClientConfig::new()
            .set("no.such.property", "x")
            .create::<rdkafka::consumer::BaseConsumer>();
        let error = kafka_error("no consumer", refused.err().unwrap());
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("kafka.properties.no.such.property"), "{error}");
        let timed_out = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        let error = kafka_error("no metadata", timed_out);
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Kafka, "no metadata"));
    }
}
