//! The transactions of a run: references and the markers of their letters, all or nothing.
//!
//! Any failure ends the run: the next run's `init_transactions` settles what this one left open, and
//! the markers say what is done.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Kafka;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::fencing::FencingLimit;
use crate::kafka::outcome::TransactionOutcome;
use crate::kafka::record::ProducerRecord;
use crate::kafka::settings::Clients;
use crate::kafka::transaction::TransactionalProducer;
use crate::redrive::rebuild::Rebuilt;

/// Time to build a producer, which waits until what an earlier run left open has ended.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);

/// Owns the producer.
pub struct Redriver {
    producer: TransactionalProducer,
    transactional_id: String,
}

impl Redriver {
    /// Takes over the transactional id: earlier runs are fenced, and what they left is settled.
    pub fn connect(kafka: &Kafka) -> Result<Self> {
        let clients = Clients::new(kafka)?;
        let transactional_id = format!("{}-redrive", kafka.group);
        if clients.transactional_id == transactional_id {
            return Err(Error::new(
                ErrorKind::Config,
                "this transactional id is reserved for redrive",
            )
            .with_context("field", "kafka.transactional_id")
            .with_context("value", &transactional_id)
            .with_context("allowed", "any other id"));
        }
        let clients = clients.with_transactional_id(transactional_id.clone());
        let fencing = FencingLimit { fencings: 1, error: taken_over(&transactional_id) };
        let health = Arc::default();
        let producer =
            TransactionalProducer::connect(&clients, fencing, &health, CONNECT_LIMIT, || false)?;
        Ok(Self { producer, transactional_id })
    }

    /// Replaces the producer, and takes over the transactional id again.
    pub fn reconnect(&mut self) -> Result<()> {
        self.producer.replace(CONNECT_LIMIT, || false)
    }

    /// One transaction: the references of `batch` on `topic`, and the markers beside their letters.
    /// The producer has to be replaced where the outcome does not keep it.
    pub fn commit(&mut self, batch: &[Rebuilt], topic: &str) -> Result<TransactionOutcome> {
        let records = batch.iter().flat_map(|rebuilt| {
            let Rebuilt { partition, reference, position, marker, .. } = rebuilt;
            [
                ProducerRecord::new(topic, *partition, reference),
                ProducerRecord::new(&position.topic, Some(position.partition), marker),
            ]
        });
        self.producer.run(records, None).map_err(|failure| {
            if failure.is_fenced {
                return taken_over(&self.transactional_id);
            }
            let error = failure.error.with_context("transactional.id", &self.transactional_id);
            match failure.outcome {
                TransactionOutcome::Unknown => error.with_context("next", "run redrive again"),
                _ => error,
            }
        })
    }
}

fn taken_over(transactional_id: &str) -> Error {
    Error::new(ErrorKind::Kafka, "another redrive of this group has taken over")
        .with_context("transactional.id", transactional_id)
}
