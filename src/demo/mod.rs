//! Everything embedded: the first command a newcomer runs.

pub mod s3;
