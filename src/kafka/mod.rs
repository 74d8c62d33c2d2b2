//! Kafka for every command: client settings, records as bytes, and transactions. Nothing in here
//! knows of images or captions.
//!
//! - [`settings`], `timeouts`: both clients' settings, and which properties are refused
//! - [`headers`], [`record`]: records byte for byte, read and produced
//! - [`transaction`]: one transaction at a time, with [`outcome`] as its end. It rests on
//!   [`producer`] (a producer that is polled), `fencing`, `watchdog` and [`error`].

pub mod error;
pub mod fencing;
pub mod headers;
pub(crate) mod log;
pub mod outcome;
pub mod producer;
pub mod record;
pub(crate) mod settings;
pub(crate) mod timeouts;
pub mod transaction;
mod watchdog;
