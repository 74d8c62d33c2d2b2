//! A real S3 server for the tests: started in the process, or a running one named by
//! `FUSIONCAP_TEST_S3`, whose keys stand in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
//!
//! Objects stay on a running one. Tests put the same bytes under the same key, so that they may
//! share it.

use std::env;
use std::fs;
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
    place: Place,
}

enum Place {
    Ours { _server: EmbeddedS3, folder: tempfile::TempDir },
    Running(Client),
}

impl ObjectStore {
    /// A server with `bucket`; to be called on a runtime of several threads.
    pub fn start(bucket: &'static str) -> Self {
        if let Ok(endpoint) = env::var("FUSIONCAP_TEST_S3") {
            return Self::running(endpoint, bucket);
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(bucket)).unwrap();
        let server = EmbeddedS3::start(folder.path(), Credentials::random()).unwrap();
        let settings = server.client_config();
        Self { bucket, settings, place: Place::Ours { _server: server, folder } }
    }

    fn running(endpoint: String, bucket: &'static str) -> Self {
        let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let (id, secret) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
        let settings = S3 {
            endpoint: Some(endpoint.clone()),
            force_path_style: true,
            access_key_id: Some(id.clone()),
            secret_access_key: Some(Secret::new(secret.clone())),
            ..S3::default()
        };
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .endpoint_url(endpoint)
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
        Self { bucket, settings, place: Place::Running(client) }
    }

    /// Puts an object.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        match &self.place {
            Place::Ours { folder, .. } => {
                let path = folder.path().join(self.bucket).join(key);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            Place::Running(client) => {
                let body = ByteStream::from(bytes.to_vec());
                let put = client.put_object().bucket(self.bucket).key(key).body(body);
                wait(put.send()).unwrap();
            }
        }
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}
