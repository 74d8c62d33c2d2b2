//! Everything embedded: the first command a newcomer runs.
