//! Spans and metrics reach an OpenTelemetry collector, set up by the standard variables alone.
//!
//! The variables belong to a process, so the one that emits is this test binary again.

use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::metrics::v1 as metrics_v1;
use opentelemetry_proto::tonic::collector::trace::v1 as trace_v1;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<String>>>,
    metrics: Arc<Mutex<Vec<String>>>,
    services: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn note_service(&self, attributes: &[KeyValue]) {
        let named = attributes.iter().find(|attribute| attribute.key == "service.name");
        let value = named.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
        if let Some(Value::StringValue(name)) = value {
            self.services.lock().unwrap().push(name.clone());
        }
    }
}

#[tonic::async_trait]
impl trace_v1::trace_service_server::TraceService for Collector {
    async fn export(
        &self,
        request: Request<trace_v1::ExportTraceServiceRequest>,
    ) -> Result<Response<trace_v1::ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            self.note_service(&resource.resource.unwrap_or_default().attributes);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans.map(|span| span.name));
        }
        Ok(Response::new(trace_v1::ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl metrics_v1::metrics_service_server::MetricsService for Collector {
    async fn export(
        &self,
        request: Request<metrics_v1::ExportMetricsServiceRequest>,
    ) -> Result<Response<metrics_v1::ExportMetricsServiceResponse>, Status> {
        for resource in request.into_inner().resource_metrics {
            self.note_service(&resource.resource.unwrap_or_default().attributes);
            let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            self.metrics.lock().unwrap().extend(metrics.map(|metric| metric.name));
        }
        Ok(Response::new(metrics_v1::ExportMetricsServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_metrics_reach_a_collector() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let server = Server::builder()
        .add_service(trace_v1::trace_service_server::TraceServiceServer::new(collector.clone()))
        .add_service(metrics_v1::metrics_service_server::MetricsServiceServer::new(
            collector.clone(),
        ))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(server);

    let emitter = tokio::task::spawn_blocking(move || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "emits_where_a_collector_is_set", "--nocapture"])
            .env(ENDPOINT, endpoint)
            .env("FUSIONCAP_LOG", "warn")
            .env_remove("OTEL_SDK_DISABLED")
            .output()
            .unwrap()
    });
    let output = emitter.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serving.abort();

    let spans = collector.spans.lock().unwrap().clone();
    assert_eq!(spans, ["caption_batch"], "our span, at info even where logs are at warn");
    let metrics = collector.metrics.lock().unwrap().clone();
    assert!(metrics.iter().any(|name| name == "fusioncap_captions"), "{metrics:?}");
    let services = collector.services.lock().unwrap().clone();
    assert!(services.len() >= 2 && services.iter().all(|name| name == "fusioncap"), "{services:?}");
}

/// What the other test runs in a process of its own; without a collector there is nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn emits_where_a_collector_is_set() {
    if std::env::var_os(ENDPOINT).is_none() {
        return;
    }
    let telemetry = fusioncap::telemetry::init().unwrap();
    tracing::info_span!(target: "fusioncap::engine", "caption_batch", images = 8).in_scope(|| {
        telemetry.metrics().captions.add(8, &[]);
    });
    tracing::info_span!(target: "elsewhere", "not_ours").in_scope(|| {});
    telemetry.shutdown().await;
}
