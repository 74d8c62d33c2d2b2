//! The embedded S3 server of the demonstration: `GET` and `HEAD` of objects, each a file on disk.
//!
//! The worker reaches it through the AWS SDK, as it reaches any S3. The server implements what one
//! worker needs: path-style URLs, an ETag, and S3's errors as XML. It does not verify signatures.
//! Every request carries the access key id, which is drawn at random for each run, so that other
//! users of this machine cannot read the photos. The tests use a complete S3 server instead.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::config::{S3, Secret};
use crate::error::{Error, ErrorKind, Result};

/// The bucket that holds the objects.
pub const BUCKET: &str = "photos";

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct EmbeddedS3 {
    address: SocketAddr,
    access_key_id: String,
    _task: AbortOnDropHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Objects {
    access_key_id: String,
    /// File of each key.
    files: HashMap<String, PathBuf>,
}

impl EmbeddedS3 {
    /// Serves `files`, by key, as the objects of [`BUCKET`], on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// `ErrorKind::Io` if there is no free port.
    pub async fn start(files: HashMap<String, PathBuf>) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, "the embedded S3 server can't listen on 127.0.0.1")
                .with_source(error)
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let access_key_id = Uuid::new_v4().simple().to_string();
        let objects = Objects { access_key_id: access_key_id.clone(), files };
        let router =
            Router::new().route("/{bucket}/{*key}", get(object)).with_state(Arc::new(objects));
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, access_key_id, _task: AbortOnDropHandle::new(task) })
    }

    /// For example `http://127.0.0.1:40123`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The configuration of a client of this server.
    pub fn client_config(&self) -> S3 {
        S3 {
            endpoint: Some(self.endpoint()),
            force_path_style: true,
            access_key_id: Some(self.access_key_id.clone()),
            secret_access_key: Some(Secret::new("not verified")),
            ..S3::default()
        }
    }
}

impl Objects {
    /// Whether the request is signed with this server's access key:
    /// `AWS4-HMAC-SHA256 Credential=<access key id>/<date>/...`.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let authorization =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let credential = authorization.and_then(|value| value.split_once("Credential="));
        credential
            .and_then(|(_, scope)| scope.split_once('/'))
            .is_some_and(|(id, _)| id == self.access_key_id)
    }
}

async fn object(
    State(objects): State<Arc<Objects>>,
    Path((bucket, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if !objects.admits(&headers) {
        return refusal(StatusCode::FORBIDDEN, "InvalidAccessKeyId");
    }
    let Some(file) = objects.files.get(&key).filter(|_| bucket == BUCKET) else {
        return refusal(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    match tokio::fs::read(file).await {
        Ok(bytes) => {
            let etag = format!("\"{}\"", hex::encode(Sha256::digest(&bytes)));
            ([(header::ETAG, etag)], bytes).into_response()
        }
        Err(error) => {
            tracing::warn!(%error, path = %file.display(), "a photo can't be read");
            refusal(StatusCode::FORBIDDEN, "AccessDenied")
        }
    }
}

/// S3's form of an error.
fn refusal(status: StatusCode, code: &str) -> Response {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::{ObjectRef, Store};

    #[tokio::test]
    async fn the_client_of_the_worker_reads_objects() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("photo.jpg"), "pixels").unwrap();
        let files = [("1-a.jpg", file("photo.jpg")), ("2-gone.jpg", file("gone.jpg"))];
        let files = files.map(|(key, path)| (key.to_owned(), path)).into();
        let server = EmbeddedS3::start(files).await.unwrap();
        let settings = server.client_config();
        let store = Store::connect(&settings).await.unwrap();
        let object = |bucket, key| ObjectRef { bucket, key, version_id: None, etag: None };

        let photo = store.get(object(BUCKET, "1-a.jpg"), 10).await.unwrap();
        assert_eq!(photo.bytes, b"pixels");
        assert_eq!(photo.etag.unwrap().len(), 64);
        let kind = async |store: &Store, bucket, key| {
            store.get(object(bucket, key), 10).await.unwrap_err().kind()
        };
        assert_eq!(kind(&store, BUCKET, "photo.jpg").await, ErrorKind::ObjectNotFound);
        assert_eq!(kind(&store, "others", "1-a.jpg").await, ErrorKind::ObjectNotFound);
        assert_eq!(kind(&store, BUCKET, "2-gone.jpg").await, ErrorKind::AccessDenied);

        let stranger = S3 { access_key_id: Some("guessed".into()), ..settings };
        let stranger = Store::connect(&stranger).await.unwrap();
        assert_eq!(kind(&stranger, BUCKET, "1-a.jpg").await, ErrorKind::CredentialsRefused);
    }
}
