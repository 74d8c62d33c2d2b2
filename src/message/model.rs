//! The identity of a model.

/// Identifies a bundle in records, metrics and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub version: String,
    /// SHA-256 of the bundle's manifest, in hex.
    pub digest: String,
}
