//! How a transaction ended: pure, so that the worker's protocol and its simulation can rest on it.

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionOutcome {
    Committed,
    /// Committed, but a connection broke meanwhile: librdkafka may have sent the end of the
    /// transaction twice, and the second request may still be on its way.
    CommittedInDoubt,
    /// Aborted, for certain.
    Aborted,
    /// Unknown, or the producer is unusable.
    Unknown,
}

impl TransactionOutcome {
    /// Whether the producer may begin another transaction. librdkafka has no KIP-890: an end of
    /// transaction that is still on its way would end a *later* transaction of the same producer,
    /// but not one of its successor, whose epoch is higher.
    pub const fn keeps_producer(self) -> bool {
        matches!(self, Self::Committed | Self::Aborted)
    }

    /// Whether the records are committed.
    pub const fn is_committed(self) -> bool {
        matches!(self, Self::Committed | Self::CommittedInDoubt)
    }
}
