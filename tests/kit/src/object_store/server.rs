//! An S3 server on loopback: each bucket is a folder, each object a file in it.
//!
//! The server speaks the real protocol (`s3s`) and verifies AWS Signature Version 4: it takes
//! path-style URLs only, and answers 403 to a wrong secret. It runs on a thread and a runtime of
//! its own, so that it answers while the caller's runtime is blocked. Unlike AWS, it answers
//! `NoSuchKey` for a missing bucket, too.

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

use super::Access;
use super::files::Files;

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A running server; dropping it stops it.
pub struct Server {
    access: Access,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the folder `root` on a free port, to clients that know a secret drawn at random.
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let access = Access {
            endpoint: format!("http://{address}"),
            access_key_id: "fusioncap".into(),
            secret_access_key: uuid::Uuid::new_v4().simple().to_string(),
        };
        let service = service(root, &access);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let stopped = shutdown.clone();
        let thread = std::thread::Builder::new()
            .name("s3-server".into())
            .spawn(move || serve(runtime, listener, service, stopped))
            .unwrap();
        Self { access, shutdown, thread: Some(thread) }
    }

    /// How a client reaches this server.
    pub fn access(&self) -> &Access {
        &self.access
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

fn service(root: &Path, access: &Access) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Files::new(root));
    let (id, secret) = (access.access_key_id.as_str(), access.secret_access_key.as_str());
    builder.set_auth(SimpleAuth::from_single(id, secret));
    builder.build()
}

fn serve(runtime: Runtime, listener: TcpListener, service: S3Service, shutdown: CancellationToken) {
    runtime.block_on(accept(listener, service, shutdown)).unwrap();
    // Reads of files in progress on the blocking pool are not waited for.
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
            // No file descriptor is free, or the client has gone; the next one may succeed.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        let stopped = shutdown.clone();
        // A client may close a connection at any time.
        connections.spawn(async move { stopped.run_until_cancelled(connection).await.map(drop) });
    }
    connections.close();
    connections.wait().await;
    Ok(())
}
