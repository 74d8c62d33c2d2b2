//! A real S3 server for the tests: started in the process, or a running one named by
//! `FUSIONCAP_TEST_S3`, whose keys stand in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
//!
//! Objects stay on a running one. Tests put the same bytes under the same key, so that they may
//! share it.

use std::env;
use std::future::Future;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::primitives::ByteStream;
use fusioncap::config::{S3, Secret};
use fusioncap::demo::s3::{Credentials, EmbeddedS3};

pub struct ObjectStore {
    bucket: &'static str,
    /// With what a client reaches it.
    pub settings: S3,
    client: Client,
    _ours: Option<(EmbeddedS3, tempfile::TempDir)>,
}

impl ObjectStore {
    /// A server with `bucket`; to be called on a runtime of several threads.
    pub fn start(bucket: &'static str) -> Self {
        if let Ok(endpoint) = env::var("FUSIONCAP_TEST_S3") {
            return Self::new(bucket, running(endpoint), None);
        }
        let folder = tempfile::tempdir().unwrap();
        let server = EmbeddedS3::start(folder.path(), Credentials::random()).unwrap();
        Self::new(bucket, server.client_config(), Some((server, folder)))
    }

    fn new(
        bucket: &'static str,
        settings: S3,
        ours: Option<(EmbeddedS3, tempfile::TempDir)>,
    ) -> Self {
        let id = settings.access_key_id.clone().unwrap();
        let secret = settings.secret_access_key.as_ref().unwrap().reveal();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .endpoint_url(settings.endpoint.as_deref().unwrap())
            .credentials_provider(aws_sdk_s3::config::Credentials::new(
                id, secret, None, None, "test",
            ))
            .force_path_style(true)
            .build();
        let client = Client::from_conf(config);
        if let Err(error) = wait(client.create_bucket().bucket(bucket).send()) {
            let error = error.into_service_error();
            let there = error.is_bucket_already_exists() || error.is_bucket_already_owned_by_you();
            assert!(there, "{error:?}");
        }
        Self { bucket, settings, client, _ours: ours }
    }

    /// Puts an object.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let body = ByteStream::from(bytes.to_vec());
        let put = self.client.put_object().bucket(self.bucket).key(key).body(body);
        wait(put.send()).unwrap();
    }
}

fn running(endpoint: String) -> S3 {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    S3 {
        endpoint: Some(endpoint),
        force_path_style: true,
        access_key_id: Some(variable("AWS_ACCESS_KEY_ID")),
        secret_access_key: Some(Secret::new(variable("AWS_SECRET_ACCESS_KEY"))),
        ..S3::default()
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}
