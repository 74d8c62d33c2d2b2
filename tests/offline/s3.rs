//! The embedded S3 server, met through the AWS SDK as the worker meets any S3.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use fusioncap::demo::s3::{Credentials, EmbeddedS3};

fn client(server: &EmbeddedS3, secret: &str) -> Client {
    let credentials = aws_sdk_s3::config::Credentials::new(
        &server.credentials().access_key_id,
        secret,
        None,
        None,
        "test",
    );
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(server.endpoint())
        .credentials_provider(credentials)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

#[tokio::test]
async fn objects_are_put_read_and_listed() {
    let root = tempfile::tempdir().unwrap();
    let server = EmbeddedS3::start(root.path(), Credentials::random()).unwrap();
    let client = client(&server, server.credentials().secret_access_key.reveal());

    client.create_bucket().bucket("photos").send().await.unwrap();
    for name in ["a.jpg", "deep/er/b c+ü.jpg"] {
        let body = ByteStream::from(name.as_bytes().to_vec());
        client.put_object().bucket("photos").key(name).body(body).send().await.unwrap();
    }
    let object =
        client.get_object().bucket("photos").key("deep/er/b c+ü.jpg").send().await.unwrap();
    assert!(object.e_tag().is_some());
    let bytes = object.body.collect().await.unwrap().into_bytes();
    assert_eq!(bytes, "deep/er/b c+ü.jpg".as_bytes());

    let listed = client.list_objects_v2().bucket("photos").send().await.unwrap();
    let keys: Vec<_> = listed.contents().iter().filter_map(|object| object.key()).collect();
    assert_eq!(keys, ["a.jpg", "deep/er/b c+ü.jpg"]);
    let below = client.list_objects_v2().bucket("photos").prefix("deep/").send().await.unwrap();
    assert_eq!(below.contents().len(), 1);
}

#[tokio::test]
async fn a_missing_object_is_404() {
    let root = tempfile::tempdir().unwrap();
    let server = EmbeddedS3::start(root.path(), Credentials::random()).unwrap();
    let client = client(&server, server.credentials().secret_access_key.reveal());
    client.create_bucket().bucket("photos").send().await.unwrap();

    for bucket in ["photos", "no-such-bucket"] {
        let error = client.get_object().bucket(bucket).key("nothing").send().await.unwrap_err();
        assert_eq!(status(&error), Some(404));
        assert_eq!(error.code(), Some("NoSuchKey"));
    }
}

#[tokio::test]
async fn a_wrong_secret_is_403() {
    let root = tempfile::tempdir().unwrap();
    let server = EmbeddedS3::start(root.path(), Credentials::random()).unwrap();
    let stranger = client(&server, "not the secret");

    let error = stranger.get_object().bucket("photos").key("a.jpg").send().await.unwrap_err();
    assert_eq!(status(&error), Some(403));
    assert_eq!(error.code(), Some("SignatureDoesNotMatch"));
}

#[test]
fn it_runs_without_a_runtime_and_stops() {
    let root = tempfile::tempdir().unwrap();
    let server = EmbeddedS3::start(root.path(), Credentials::random()).unwrap();
    let address = server.endpoint().trim_start_matches("http://").to_owned();
    assert!(std::net::TcpStream::connect(&address).is_ok());
    server.stop();
    assert!(std::net::TcpStream::connect(&address).is_err());
}

#[test]
fn a_missing_folder_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let missing = root.path().join("missing");
    let error = EmbeddedS3::start(&missing, Credentials::random()).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}
