//! Requests go to the configured endpoint, for exactly the object that was named, or they don't
//! go at all.

use std::net::TcpStream;

use fusioncap::ErrorKind;
use fusioncap::config::{S3, Secret};
use fusioncap::s3::{ObjectRef, Store};
use percent_encoding::percent_decode_str;

use super::recorder::{Answer, Recorder};

const LIMIT: u64 = 1000;

/// A store that has every object.
fn giving() -> Recorder {
    Recorder::start(|_, _| Answer::new(200, "bytes"))
}

async fn connect(endpoint: String, force_path_style: bool) -> Store {
    let settings = S3 {
        endpoint: Some(endpoint),
        force_path_style,
        access_key_id: Some("id".into()),
        secret_access_key: Some(Secret::new("secret")),
        max_attempts: 1,
        ..S3::default()
    };
    Store::connect(&settings).await.unwrap()
}

fn object<'a>(bucket: &'a str, key: &'a str) -> ObjectRef<'a> {
    ObjectRef { bucket, key, version_id: None, etag: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_reaches_exactly_its_object() {
    let server = giving();
    let store = connect(server.url(), true).await;
    for key in [
        "a.jpg",
        "a b+c.jpg",
        "a?versionId=1&x-id=DeleteObject",
        "a#b",
        "100%",
        "%2e%2e/secrets/a.jpg",
        "%2F..%2Fsecrets",
        "a%00b",
        "/a",
        "//evil.example/a",
        "a//b/",
        "http://evil.example/a",
        "@evil.example/a",
        ":9000/a",
        "a\\..\\b",
        "..a/b../...",
        "é\u{202e}/😀.jpg",
        "a;b,c=d&e:f$g!h*i'j(k)[l]{m}|n^o`p~q<r>s\"t",
    ] {
        store.get(object("lake", key), LIMIT).await.unwrap();
        let request = server.last();
        let (path, query) = request.parts();
        let encoded = path.strip_prefix("/lake/").unwrap_or_else(|| panic!("{key}: {path}"));
        assert_eq!(percent_decode_str(encoded).decode_utf8().unwrap(), key, "{path}");
        assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{key}: {path}");
        assert_eq!(query, "x-id=GetObject", "{key}");
        assert_eq!(request.header("host"), Some(server.address.to_string().as_str()), "{key}");
        assert_eq!(request.method, "GET");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_or_an_etag_adds_nothing_of_its_own() {
    let server = giving();
    let store = connect(server.url(), true).await;
    let version = "1&partNumber=2#?/../x y%";
    let versioned = ObjectRef { version_id: Some(version), ..object("lake", "a.jpg") };
    store.get(versioned, LIMIT).await.unwrap();
    let request = server.last();
    let (path, query) = request.parts();
    assert_eq!(path, "/lake/a.jpg");
    let mut parameters: Vec<(&str, &str)> =
        query.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
    parameters.sort_unstable();
    let [(first, sent), last] = parameters[..] else { panic!("{query}") };
    assert_eq!((first, last), ("versionId", ("x-id", "GetObject")));
    assert_eq!(percent_decode_str(sent).decode_utf8().unwrap(), version);

    let before = server.connections();
    let split = ObjectRef { etag: Some("a\"\r\nX-Evil: 1"), ..object("lake", "a.jpg") };
    store.get(split, LIMIT).await.unwrap_err();
    assert_eq!(server.connections(), before, "a header was split, or sent broken");
}

/// In both styles of addressing: a bucket is a part of the path, or of the host's name.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_elsewhere_is_never_asked_for() {
    let (server, other) = (giving(), giving());
    let there = other.address.to_string();
    let local = format!("http://localhost:{}", server.address.port());
    for (endpoint, force_path_style) in
        [(server.url(), true), (server.url(), false), (local, false)]
    {
        let store = connect(endpoint, force_path_style).await;
        let buckets = [
            there.clone(),
            format!("{there}/x"),
            format!("a@{there}"),
            format!("{there}#"),
            format!("{there}?"),
            "127.0.0.1".into(),
            "..".into(),
            "../secrets".into(),
            "lake/../secrets".into(),
            "%2e%2e".into(),
            "arn:aws:s3:us-west-2:123456789012:accesspoint:mine".into(),
            "arn:aws:s3:::lake".into(),
            "mine-123456789012-s3alias".into(),
            "mine--use1-az4--x-s3".into(),
            "lake\r\nX-Evil: 1".into(),
        ];
        for bucket in &buckets {
            let error = store.get(object(bucket, "a.jpg"), LIMIT).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedUri, "{bucket}: {error}");
            let error = store.list(bucket, "").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedUri, "{bucket}: {error}");
        }
        for key in ["..", "../secrets/a", "a/../../secrets/a", "./a", "a\r\nX-Evil: 1", "a\0b"] {
            let error = store.get(object("lake", key), LIMIT).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedUri, "{key}: {error}");
        }
    }
    assert_eq!((server.connections(), other.connections()), (0, 0));
    // A sound name does go out, so the silence above means something.
    connect(server.url(), true).await.get(object("lake", "a.jpg"), LIMIT).await.unwrap();
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_is_followed() {
    let other = giving();
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{}/lake/a.jpg", other.url());
        let endpoint = format!("<Endpoint>{}</Endpoint>", other.address);
        let body = format!("<Error><Code>PermanentRedirect</Code>{endpoint}</Error>");
        let server = Recorder::start(move |_, _| {
            Answer::new(status, body.clone())
                .with("Location", location.clone())
                .with("x-amz-bucket-region", "eu-central-1")
        });
        let store = connect(server.url(), true).await;
        let error = store.get(object("lake", "a.jpg"), LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("not followed"), "{status}: {error}");
        assert_eq!(error.kind(), ErrorKind::ObjectNotFound);
        store.list("lake", "").await.unwrap_err();
        assert_eq!(server.requests().len(), 2, "{status}");
    }
    assert_eq!(other.connections(), 0);
    // It was there to be reached.
    TcpStream::connect(other.address).unwrap();
}
