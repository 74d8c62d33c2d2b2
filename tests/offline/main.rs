//! Tests that need no service: the library on fixtures, ONNX Runtime and an S3 server in this
//! process, and the commands that reach nothing but these.

mod access;
mod bad_model;
mod cli;
mod demo;
mod engine;
mod image;
mod message;
mod store;

use fusioncap::config::{S3, Secret};
use kit::object_store::Access;

/// The configuration with which a client reaches a server.
fn settings(access: &Access) -> S3 {
    S3 {
        endpoint: Some(access.endpoint.clone()),
        force_path_style: true,
        access_key_id: Some(access.access_key_id.clone()),
        secret_access_key: Some(Secret::new(access.secret_access_key.clone())),
        ..S3::default()
    }
}
