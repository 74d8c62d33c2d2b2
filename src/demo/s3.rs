//! An S3 server on loopback: objects are files below a folder, requests must be signed.
//!
//! It speaks the real protocol (`s3s`) and verifies AWS Signature Version 4, so clients meet it
//! as they meet any S3: path style only, 403 on a wrong secret. The demonstration and the tests
//! use it; it runs on a thread and runtime of its own, so it answers even while the caller's
//! runtime is blocked. Unlike AWS, it answers `NoSuchKey` for a missing bucket, too.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{S3, Secret};
use crate::demo::files::Files;
use crate::error::{Error, ErrorKind, Result};

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// The one key pair that a server accepts.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: Secret,
}

impl Credentials {
    /// A pair nobody else knows, for a server that lives as long as one process.
    pub fn random() -> Self {
        Self {
            access_key_id: "fusioncap".into(),
            secret_access_key: Secret::new(uuid::Uuid::new_v4().simple().to_string()),
        }
    }
}

/// A running server; dropping it stops it.
pub struct EmbeddedS3 {
    address: SocketAddr,
    credentials: Credentials,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedS3 {
    /// Serves the folder `root` on a free port of 127.0.0.1. Each bucket is a folder in it.
    ///
    /// # Errors
    /// `ErrorKind::Io` if `root` is no folder, or no port or thread can be had.
    pub fn start(root: &Path, credentials: Credentials) -> Result<Self> {
        let service = service(root, &credentials)?;
        let unbound = |error: io::Error| failed("can't listen on 127.0.0.1").because(error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(unbound)?;
        listener.set_nonblocking(true).map_err(unbound)?;
        let address = listener.local_addr().map_err(unbound)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed("can't start a runtime").because(error))?;
        let shutdown = CancellationToken::new();
        let stopped = shutdown.clone();
        let thread = std::thread::Builder::new()
            .name("embedded-s3".into())
            .spawn(move || serve(runtime, listener, service, stopped))
            .map_err(|error| failed("can't start a thread").because(error))?;
        Ok(Self { address, credentials, shutdown, thread: Some(thread) })
    }

    /// Such as `http://127.0.0.1:40123`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The configuration with which a client reaches this server.
    pub fn client_config(&self) -> S3 {
        S3 {
            endpoint: Some(self.endpoint()),
            force_path_style: true,
            access_key_id: Some(self.credentials.access_key_id.clone()),
            secret_access_key: Some(self.credentials.secret_access_key.clone()),
            ..S3::default()
        }
    }

    /// Stops the server and waits until it is gone; requests under way are cut off.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            // The server's thread ends by returning; a panic there has been printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.halt();
    }
}

impl fmt::Debug for EmbeddedS3 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EmbeddedS3").field("endpoint", &self.endpoint()).finish()
    }
}

fn service(root: &Path, credentials: &Credentials) -> Result<S3Service> {
    let files = Files::new(root).map_err(|error| {
        failed("can't serve a folder").with("path", root.display()).because(format!("{error:?}"))
    })?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(
        credentials.access_key_id.as_str(),
        credentials.secret_access_key.reveal(),
    ));
    Ok(builder.build())
}

fn serve(runtime: Runtime, listener: TcpListener, service: S3Service, shutdown: CancellationToken) {
    if let Err(error) = runtime.block_on(accept(listener, service, shutdown)) {
        tracing::error!(%error, "the embedded s3 server can't accept connections");
    }
    // File reads under way on the blocking pool are not waited for.
    runtime.shutdown_background();
}

async fn accept(
    listener: TcpListener,
    service: S3Service,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let http = Builder::new(TokioExecutor::new());
    let connections = TaskTracker::new();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let Ok((socket, _)) = accepted else {
            // Out of file descriptors, or a client that went away: the next one may do better.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        let stopped = shutdown.clone();
        connections.spawn(async move {
            if let Some(Err(error)) = stopped.run_until_cancelled(connection).await {
                tracing::debug!(%error, "an s3 connection ended early");
            }
        });
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

fn failed(what: &'static str) -> Error {
    Error::new(ErrorKind::Io, what).with("part", "embedded S3 server")
}
