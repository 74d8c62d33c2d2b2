//! Retrying with exponential backoff and jitter: the one module that knows `backoff`
//! (unmaintained, RUSTSEC-2025-0012; its replacement would be `backon`).
