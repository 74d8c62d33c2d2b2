//! One port for the probes and the scraper: `/livez`, `/readyz` (503 and the reason until the
//! worker is ready) and `/metrics`, in Prometheus's text format or, where the scraper prefers it,
//! in OpenMetrics.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TEXT_FORMAT};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::metrics::{Metrics, encode, encode_openmetrics};
use super::{Health, openmetrics};
use crate::error::{Error, ErrorKind, Result};

/// How long open connections may take to end.
const CLOSING: Duration = Duration::from_secs(1);

/// What `/metrics` shows.
#[derive(Clone, Debug)]
pub struct Scraped {
    pub registry: Registry,
    /// Whose exemplars go with it.
    pub metrics: Arc<Metrics>,
}

/// The server, until it is shut down or dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<io::Result<()>>,
    stop: DropGuard,
}

/// Serves on `listen`; port 0 takes a free one.
///
/// # Errors
/// `ErrorKind::Config`, naming `http.listen`, where the address can't be bound.
pub async fn serve(listen: SocketAddr, health: Arc<Health>, scraped: Scraped) -> Result<Server> {
    let refused = |error: io::Error| {
        Error::new(ErrorKind::Config, format!("http.listen can't be {listen}"))
            .with("allowed", "a free address of this machine")
            .because(error)
    };
    let listener = TcpListener::bind(listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health)
        .route("/metrics", get(metrics).with_state(scraped));
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
    /// Where it listens.
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

async fn metrics(State(scraped): State<Scraped>, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accepted: Vec<&str> = accepted.collect();
    let Scraped { registry, metrics } = scraped;
    let (kind, written) = match openmetrics::is_wanted(&accepted.join(",")) {
        true => (openmetrics::CONTENT_TYPE, encode_openmetrics(&registry, &metrics)),
        false => (TEXT_FORMAT, encode(&registry)),
    };
    match written {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error.chain())).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, TraceFlags, TraceState};
    use opentelemetry::{KeyValue, SpanId, TraceId};
    use opentelemetry_sdk::Resource;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::telemetry::metrics::Meters;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        fetch_as(address, path, "*/*").await
    }

    async fn fetch_as(address: SocketAddr, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: probe\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn meters() -> Meters {
        let about = Resource::builder_empty().with_service_name("captions").build();
        Meters::new(about, None).unwrap()
    }

    fn scraped(meters: &Meters) -> Scraped {
        Scraped { registry: meters.registry.clone(), metrics: Arc::clone(&meters.metrics) }
    }

    fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[tokio::test]
    async fn probes_follow_the_health() {
        let health = Arc::new(Health::default());
        let meters = meters();
        meters.metrics.captions.add(2, &[]);
        let server = serve(loopback(), Arc::clone(&health), scraped(&meters)).await.unwrap();
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
    async fn a_scraper_that_asks_for_openmetrics_gets_exemplars() {
        let meters = meters();
        let (trace, span) = (TraceId::from(0xab), SpanId::from(0xcd));
        let span = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE);
        meters.metrics.latency(0.3, Some(&span));
        meters.metrics.latency(0.2, None);
        meters.metrics.latency(400.0, Some(&span));
        meters.metrics.dead_letters.add(1, &[KeyValue::new("code", "a\"b\\c\nd")]);
        let server = serve(loopback(), Arc::default(), scraped(&meters)).await.unwrap();
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        let shown = fetch_as(server.address(), "/metrics", accept).await;
        let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert!(shown.contains(kind), "{shown}");
        let ids = "{trace_id=\"000000000000000000000000000000ab\",span_id=\"00000000000000cd\"}";
        for line in [
            "# TYPE target info\n",
            "\ntarget_info{service_name=\"captions\"} 1\n",
            "# TYPE fusioncap_captions counter\n",
            "\nfusioncap_captions_total 0\n",
            "# UNIT fusioncap_latency_seconds seconds\n",
            "\nfusioncap_latency_seconds_bucket{le=\"0.25\"} 1\n",
            &format!("\nfusioncap_latency_seconds_bucket{{le=\"0.5\"}} 2 # {ids} 0.3 "),
            "\nfusioncap_latency_seconds_bucket{le=\"1.0\"} 2\n",
            &format!("\nfusioncap_latency_seconds_bucket{{le=\"+Inf\"}} 3 # {ids} 400 "),
            "\nfusioncap_latency_seconds_count 3\n",
            "\nfusioncap_dead_letters_total{code=\"a\\\"b\\\\c\\nd\"} 1\n",
        ] {
            assert!(shown.contains(line), "{line}\n{shown}");
        }
        assert!(shown.ends_with("# EOF\n"), "{shown}");
        let plain = fetch(server.address(), "/metrics").await;
        assert!(!plain.contains("trace_id") && !plain.contains("# EOF"), "{plain}");
    }

    #[tokio::test]
    async fn a_port_in_use_names_the_field() {
        let health = Arc::new(Health::default());
        let meters = meters();
        let first = serve(loopback(), Arc::clone(&health), scraped(&meters)).await.unwrap();
        let error = serve(first.address(), health, scraped(&meters)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.chain().starts_with("http.listen can't be 127.0.0.1:"), "{}", error.chain());
    }
}
