//! The object store's client against a real S3 server: what is read, and what each refusal means.

use std::fs;
use std::path::Path;
use std::time::Duration;

use fusioncap::ErrorKind;
use fusioncap::config::{S3, Secret};
use fusioncap::s3::{MemoryBudget, ObjectRef, Store};
use kit::object_store::ObjectStore;

use crate::settings;

const LIMIT: u64 = 1000;

/// A server whose bucket `lake` holds `files`.
fn serve(files: &[(&str, &[u8])]) -> ObjectStore {
    let server = ObjectStore::start("lake");
    files.iter().for_each(|(key, bytes)| server.put(key, bytes));
    server
}

async fn kind(store: &Store, object: ObjectRef<'_>) -> ErrorKind {
    let error = store.get(object, LIMIT).await.unwrap_err();
    assert!(error.to_string().contains(object.key), "{error}");
    error.kind()
}

fn lake(key: &str) -> ObjectRef<'_> {
    ObjectRef { bucket: "lake", key, version_id: None, etag: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_read_whole_or_refused() {
    let (large, largest) = (vec![7; 1001], vec![7; 1000]);
    let server = serve(&[
        ("deep/b c+ü.jpg", b"bytes"),
        ("empty", b""),
        ("large", &large),
        ("largest", &largest),
    ]);
    let store = Store::connect(&settings(server.access())).await.unwrap();
    assert_eq!(store.get(lake("deep/b c+ü.jpg"), LIMIT).await.unwrap().bytes, b"bytes");
    assert_eq!(store.get(lake("largest"), LIMIT).await.unwrap().bytes.len(), 1000);
    assert_eq!(kind(&store, lake("missing")).await, ErrorKind::ObjectNotFound);
    assert_eq!(kind(&store, lake("empty")).await, ErrorKind::EmptyObject);
    assert_eq!(kind(&store, lake("large")).await, ErrorKind::ObjectTooLarge);
    let changed = ObjectRef { etag: Some("\"another\""), ..lake("deep/b c+ü.jpg") };
    assert_eq!(kind(&store, changed).await, ErrorKind::EtagMismatch);
    let elsewhere = ObjectRef { bucket: "elsewhere", ..lake("deep/b c+ü.jpg") };
    assert_eq!(kind(&store, elsewhere).await, ErrorKind::ObjectNotFound);
}

/// The wait for memory does not count towards a request's deadline, however long it takes.
#[tokio::test(flavor = "multi_thread")]
async fn objects_wait_until_there_is_memory_for_them() {
    let whole = vec![7; 1000];
    let server = serve(&[("whole", &whole), ("small", b"bytes")]);
    let deadline = Duration::from_secs(1);
    let hasty = S3 { timeout_ms: 1000, ..settings(server.access()) };
    let store = Store::connect(&hasty).await.unwrap();
    let budget = MemoryBudget::new(LIMIT);
    let (first, reservation) = store.get_within(lake("whole"), LIMIT, &budget).await.unwrap();
    assert_eq!(first.bytes, whole);
    let waiting = tokio::spawn({
        let (store, budget) = (store.clone(), budget.clone());
        async move { store.get_within(lake("small"), LIMIT, &budget).await }
    });
    // Longer than a response waits for memory.
    tokio::time::sleep(deadline * 3).await;
    assert!(!waiting.is_finished());
    drop(reservation);
    let (second, _reservation) = waiting.await.unwrap().unwrap();
    assert_eq!(second.bytes, b"bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_a_dead_server_are_told_apart() {
    let server = serve(&[("a.jpg", b"bytes")]);
    let right = settings(server.access());
    let wrong = S3 { secret_access_key: Some(Secret::new("wrong")), ..right.clone() };
    let store = Store::connect(&wrong).await.unwrap();
    assert_eq!(kind(&store, lake("a.jpg")).await, ErrorKind::CredentialsRefused);
    let nobody = S3 { endpoint: Some("http://127.0.0.1:1".into()), ..right };
    let store = Store::connect(&nobody).await.unwrap();
    assert_eq!(kind(&store, lake("a.jpg")).await, ErrorKind::FetchUnavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_becomes_a_directory() {
    let files: [(&str, &[u8]); 4] = [
        ("models/tiny/config.json", b"{}"),
        ("models/tiny/onnx/vision.onnx", b"weights"),
        ("models/tiny/empty", b""),
        ("models/tiny2/config.json", b"other"),
    ];
    let server = serve(&files);
    let store = Store::connect(&settings(server.access())).await.unwrap();
    let found = store.list("lake", "models/tiny/").await.unwrap();
    assert!(
        found.iter().all(|entry| entry.etag.is_some() || entry.modified.is_some()),
        "{found:?}"
    );
    let mut sizes: Vec<(&str, u64)> =
        found.iter().map(|entry| (&*entry.key, entry.bytes)).collect();
    sizes.sort_unstable();
    let expected = [
        ("models/tiny/config.json", 2),
        ("models/tiny/empty", 0),
        ("models/tiny/onnx/vision.onnx", 7),
    ];
    assert_eq!(sizes, expected);

    let folder = tempfile::tempdir().unwrap();
    let read = |path: &Path| fs::read(path).unwrap();
    for (name, uri) in [("a", "s3://lake/models/tiny"), ("b", "s3://lake/models/tiny/")] {
        let dir = folder.path().join(name);
        store.download_prefix(uri, &dir, |_| true).await.unwrap();
        assert_eq!(read(&dir.join("config.json")), b"{}");
        assert_eq!(read(&dir.join("onnx/vision.onnx")), b"weights");
        assert_eq!(read(&dir.join("empty")), b"");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
    }
    let dir = folder.path().join("part");
    store.download_prefix("s3://lake/models/tiny", &dir, |name| name == "empty").await.unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    let nothing = store.download_prefix("s3://lake/nothing", folder.path(), |_| true).await;
    let error = nothing.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ObjectNotFound);
}
