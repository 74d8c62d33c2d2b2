//! The port of the probes and the scraper: `/livez`, `/readyz` (503 and the reason until the
//! worker is ready) and `/metrics` in Prometheus's text format.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TEXT_FORMAT};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Health;
use super::metrics::encode;
use crate::error::{Error, ErrorKind, Result};

/// Time limit for open connections to end.
const CLOSING: Duration = Duration::from_secs(1);

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<io::Result<()>>,
    stop: DropGuard,
}

/// Serves `health` and the metrics of `registry` on `listen`; port 0 takes a free port.
///
/// # Errors
/// `ErrorKind::Config`, naming `http.listen`, if the address can't be bound.
pub async fn serve(listen: SocketAddr, health: Arc<Health>, registry: Registry) -> Result<Server> {
    let refused = |error: io::Error| {
        Error::new(ErrorKind::Config, format!("http.listen can't be {listen}"))
            .with_context("allowed", "a free address of this machine")
            .with_source(error)
    };
    let listener = TcpListener::bind(listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health)
        .route("/metrics", get(metrics).with_state(registry));
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let task =
        tokio::spawn(
            async move { axum::serve(listener, router).with_graceful_shutdown(stopped).await },
        );
    tracing::info!(%address, "serving probes and metrics");
    Ok(Server { address, task, stop: stop.drop_guard() })
}

impl Server {
    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops, giving open connections a second to end.
    pub async fn shutdown(self) {
        let Self { mut task, stop, .. } = self;
        drop(stop);
        if tokio::time::timeout(CLOSING, &mut task).await.is_err() {
            task.abort();
        }
    }
}

async fn livez(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    match health.is_live() {
        true => (StatusCode::OK, "live\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "failed\n"),
    }
}

async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    match health.is_ready() {
        true => (StatusCode::OK, "ready\n".into()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", health.reason())),
    }
}

async fn metrics(State(registry): State<Registry>) -> Response {
    match encode(&registry) {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error.chain())).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::Resource;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::telemetry::metrics::Meters;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn meters() -> Meters {
        let about = Resource::builder_empty().with_service_name("captions").build();
        Meters::new(about, None).unwrap()
    }

    fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[tokio::test]
    async fn probes_follow_the_health() {
        let health = Arc::new(Health::default());
        let meters = meters();
        meters.metrics.captions.add(2, &[]);
        let server = serve(loopback(), Arc::clone(&health), meters.registry.clone()).await.unwrap();
        let address = server.address();

        let starting = fetch(address, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503 "), "{starting}");
        assert!(starting.ends_with("not ready: starting\n"), "{starting}");
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 200 "));

        health.set_ready(true);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        health.set_not_ready("draining");
        assert!(fetch(address, "/readyz").await.ends_with("not ready: draining\n"));

        health.set_failed();
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 503 "));
        assert!(fetch(address, "/readyz").await.ends_with("not ready: failed\n"));

        let shown = fetch(address, "/metrics").await;
        assert!(shown.contains("content-type: text/plain; version=0.0.4"), "{shown}");
        assert!(shown.contains("fusioncap_captions_total 2"), "{shown}");
        assert!(fetch(address, "/").await.starts_with("HTTP/1.1 404 "));

        server.shutdown().await;
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_port_in_use_names_the_field() {
        let health = Arc::new(Health::default());
        let first = serve(loopback(), Arc::clone(&health), Registry::new()).await.unwrap();
        let error = serve(first.address(), health, Registry::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.chain().starts_with("http.listen can't be 127.0.0.1:"), "{}", error.chain());
    }
}
