//! `fusioncap verify` and `fusioncap redrive` as processes, against a real Kafka and a real worker.

mod interrupted;
mod letters;
mod redrive;
mod verify;
