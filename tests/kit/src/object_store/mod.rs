//! A real S3 server for the tests: started in the process, or a running one named by
//! `FUSIONCAP_TEST_S3`, with its keys in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
//!
//! Objects stay on a running server. Tests put the same bytes under the same key, so that they can
//! share it.

mod files;
mod server;

use std::env;
use std::future::Future;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
pub use server::Server;

/// How a client reaches an S3 server: path-style URLs, and one pair of keys.
#[derive(Clone, Debug)]
pub struct Access {
    /// Such as `http://127.0.0.1:40123`.
    pub endpoint: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// One bucket on an S3 server.
pub struct ObjectStore {
    bucket: &'static str,
    access: Access,
    client: Client,
    _ours: Option<(Server, tempfile::TempDir)>,
}

impl ObjectStore {
    /// A server with `bucket`. The caller must be on a multi-threaded runtime.
    pub fn start(bucket: &'static str) -> Self {
        if let Ok(endpoint) = env::var("FUSIONCAP_TEST_S3") {
            return Self::new(bucket, running(endpoint), None);
        }
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path());
        Self::new(bucket, server.access().clone(), Some((server, folder)))
    }

    fn new(
        bucket: &'static str,
        access: Access,
        ours: Option<(Server, tempfile::TempDir)>,
    ) -> Self {
        let Access { endpoint, access_key_id, secret_access_key } = access.clone();
        let keys = Credentials::new(access_key_id, secret_access_key, None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(keys)
            .force_path_style(true)
            .build();
        let client = Client::from_conf(config);
        if let Err(error) = wait(client.create_bucket().bucket(bucket).send()) {
            let error = error.into_service_error();
            let there = error.is_bucket_already_exists() || error.is_bucket_already_owned_by_you();
            assert!(there, "{error:?}");
        }
        Self { bucket, access, client, _ours: ours }
    }

    /// How a client reaches the server.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Puts an object.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let body = ByteStream::from(bytes.to_vec());
        let put = self.client.put_object().bucket(self.bucket).key(key).body(body);
        wait(put.send()).unwrap();
    }

    /// The ETag of an object, as the server sends it: in quotes.
    pub fn etag(&self, key: &str) -> String {
        let object = wait(self.client.get_object().bucket(self.bucket).key(key).send()).unwrap();
        object.e_tag.expect("the server has ETags")
    }
}

fn running(endpoint: String) -> Access {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    Access {
        endpoint,
        access_key_id: variable("AWS_ACCESS_KEY_ID"),
        secret_access_key: variable("AWS_SECRET_ACCESS_KEY"),
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}
