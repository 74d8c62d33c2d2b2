//! Training from text alone.
