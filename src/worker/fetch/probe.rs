//! Probes of the object store while the breaker is open.

use std::time::Instant;

use crate::error::{Disposition, Result};
use crate::retry::Policy;
use crate::s3::ObjectRef;
use crate::worker::fetch::reader::ObjectReader;

/// Probes in a row that must be answered before the breaker closes.
const PROBES: u32 = 3;

impl ObjectReader {
    /// Probes the store whenever the breaker is open, and closes it when the store answers again. Runs
    /// without end.
    pub async fn probe_while_open(&self) {
        let circuit_breaker_open = &self.observer.metrics.circuit_breaker_open;
        loop {
            circuit_breaker_open.record(0, &[]);
            let bucket = self.breaker.opened().await;
            circuit_breaker_open.record(1, &[]);
            self.probe_until_answered(&bucket).await;
        }
    }

    async fn probe_until_answered(&self, bucket: &str) {
        let since = Instant::now();
        let mut pauses = Policy::unlimited(self.policy.initial, self.policy.max).pauses();
        let (mut answered, mut clean, mut number) = (0, true, 0);
        while answered < PROBES {
            number += 1;
            let Err(error) = self.probe(bucket, number).await else {
                answered += 1;
                continue;
            };
            if clean {
                tracing::warn!(error = error.chain(), "the object store is down: references wait");
            }
            (answered, clean) = (0, false);
            tokio::time::sleep(pauses.next().unwrap_or(self.policy.max)).await;
        }
        self.breaker.close(clean);
        if !clean {
            tracing::info!(outage = ?since.elapsed(), "the object store is up again");
        }
    }

    /// Reads an object that was read before, or asks for one that does not exist.
    async fn probe(&self, bucket: &str, number: usize) -> Result<()> {
        let Some(key) = self.breaker.known_object(bucket, number) else {
            return self.store.probe(bucket).await;
        };
        let object = ObjectRef { bucket, key: &key, version_id: None, etag: None };
        match self.store.get(object, self.max_bytes).await {
            Err(error) if error.disposition() == Disposition::Retry => Err(error),
            _ => Ok(()),
        }
    }
}
