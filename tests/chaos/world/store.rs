//! An object store that answers every key with the same small picture, and can be put in trouble.
//!
//! Trouble passes: what fails is right when it is asked for again later. A wrong length is one
//! that promises more than comes; a body that is as short as promised could only be noticed by
//! what is in it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use futures::stream;
use kit::bucket::{BUCKET, picture};
use serde::Serialize;

/// There is no such object.
pub const MISSING: &str = "missing.png";
/// There is one, and it is not an image.
pub const PAGE: &str = "page.png";

/// One request in so many is answered well in the middle of trouble.
const SPARED: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    Unavailable,
    Slow,
    CutOff,
    WrongLength,
}

#[derive(Clone)]
pub struct Store {
    pub address: SocketAddr,
    state: Arc<Inner>,
}

struct Inner {
    picture: Bytes,
    trouble: Mutex<Option<Trouble>>,
    requests: AtomicU64,
    harmed: AtomicU64,
}

impl Store {
    pub async fn start() -> Self {
        let state = Arc::new(Inner {
            picture: picture(1).into(),
            trouble: Mutex::default(),
            requests: AtomicU64::default(),
            harmed: AtomicU64::default(),
        });
        let route = format!("/{BUCKET}/{{key}}");
        let router =
            Router::new().route(&route, axum::routing::get(answer)).with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, state }
    }

    /// From now on; `None` ends it.
    pub fn set(&self, trouble: Option<Trouble>) {
        *self.state.trouble.lock().unwrap() = trouble;
    }

    /// Requests that met trouble so far.
    pub fn harmed(&self) -> u64 {
        self.state.harmed.load(Ordering::Relaxed)
    }
}

async fn answer(State(store): State<Arc<Inner>>, Path(key): Path<String>) -> Response<Body> {
    let number = store.requests.fetch_add(1, Ordering::Relaxed);
    let trouble = store.trouble.lock().unwrap().filter(|_| number % SPARED != 0);
    if trouble.is_some() {
        store.harmed.fetch_add(1, Ordering::Relaxed);
    }
    let picture = store.picture.clone();
    match trouble {
        Some(Trouble::Unavailable) => {
            return error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
        }
        // Some of these are beyond the client's patience.
        Some(Trouble::Slow) => {
            tokio::time::sleep(Duration::from_millis(300 + number % 10 * 250)).await;
        }
        Some(Trouble::CutOff) => {
            let half = picture.slice(..picture.len() / 2);
            let broken = std::io::Error::other("cut off");
            let body = Body::from_stream(stream::iter([Ok(half), Err(broken)]));
            return object(picture.len(), body);
        }
        Some(Trouble::WrongLength) => {
            let promised = picture.len() + 100;
            let body = Body::from_stream(stream::iter([Ok::<_, Infallible>(picture)]));
            return object(promised, body);
        }
        None => {}
    }
    match key.as_str() {
        MISSING => error(StatusCode::NOT_FOUND, "NoSuchKey"),
        PAGE => object(13, Body::from("<html></html>")),
        _ => object(picture.len(), Body::from(picture)),
    }
}

fn object(length: usize, body: Body) -> Response<Body> {
    let headers = [(header::CONTENT_LENGTH, length.to_string()), (header::ETAG, "\"1\"".into())];
    (headers, body).into_response()
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    (status, format!("<Error><Code>{code}</Code></Error>")).into_response()
}
