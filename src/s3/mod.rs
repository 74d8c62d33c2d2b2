//! The S3 client: reads one object, lists the keys under a prefix, downloads a prefix into a
//! directory.
//!
//! The SDK's own retries are off: [`Store::get`] is one attempt with one deadline, and the caller
//! retries. Errors have the kinds of the dead-letter topic (see `errors`). Names that
//! [`object_name`] refuses are never requested, and redirects are not followed.

mod errors;
mod location;
mod memory_budget;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Credentials, ProvideCredentials, Region, StalledStreamProtectionConfig};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use tokio::io::AsyncWriteExt;

use crate::config;
use crate::error::{Disposition, Error, ErrorKind, Result};
use crate::object_name;
use crate::retry::{Policy, retry};
pub use location::Location;
use location::{bucket_and_prefix, path_below};
pub use memory_budget::{MemoryBudget, Reservation};

/// Deadline for a connection, where `s3.timeout_ms` is not shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an open response waits for memory for its body: stores close idle connections.
const RESERVATION_TIMEOUT: Duration = Duration::from_secs(2);
/// Deadline for one file of a model bundle, which can be large.
const FILE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

impl From<&config::S3> for Policy {
    fn from(settings: &config::S3) -> Self {
        Self {
            max_attempts: settings.max_attempts,
            initial: Duration::from_millis(settings.backoff_initial_ms),
            max: Duration::from_millis(settings.backoff_max_ms),
        }
    }
}

/// An object, and optionally one version of it.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRef<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub version_id: Option<&'a str>,
    /// With or without quotes; any other ETag is an error.
    pub etag: Option<&'a str>,
}

/// A whole object.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// Without quotes.
    pub etag: Option<String>,
    pub version_id: Option<String>,
}

/// A key of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub bytes: u64,
    /// Without quotes.
    pub etag: Option<String>,
    /// Last modification, in milliseconds since 1970.
    pub modified: Option<i64>,
}

/// The object store. A clone shares the client with its connections and credentials.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    /// Deadline for one request.
    timeout: Duration,
    /// Retries of listings and downloads.
    policy: Policy,
}

impl Store {
    /// Builds the client and resolves the credentials once. Nothing is sent to the store: wrong
    /// credentials fail at the first request.
    ///
    /// # Errors
    /// `ErrorKind::Config` if the credentials are missing or incomplete.
    pub async fn connect(settings: &config::S3) -> Result<Self> {
        let timeout = Duration::from_millis(settings.timeout_ms);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .retry_config(RetryConfig::disabled())
            // Slow bodies end at the deadline of the request.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT.min(timeout)).build(),
            );
        if let Some(endpoint) = &settings.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(credentials) = static_credentials(settings)? {
            loader = loader.credentials_provider(credentials);
        }
        let shared = loader.load().await;
        if let Some(provider) = shared.credentials_provider() {
            provider.provide_credentials().await.map_err(|error| {
                Error::new(
                    ErrorKind::Config,
                    "no S3 credentials: neither the configuration nor the AWS credential chain \
                     has any",
                )
                .with_context("fields", "s3.access_key_id, s3.secret_access_key")
                .with_source(error)
            })?;
        }
        let specific = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(settings.force_path_style)
            .build();
        Ok(Self { client: Client::from_conf(specific), timeout, policy: Policy::from(settings) })
    }

    /// Reads an object of 1 to `max_bytes` bytes within `s3.timeout_ms`.
    ///
    /// # Errors
    /// One of the kinds that dead-letter (`errors`, [`object_name`]).
    pub async fn get(&self, object: ObjectRef<'_>, max_bytes: u64) -> Result<Object> {
        let budget = MemoryBudget::new(max_bytes);
        self.get_within(object, max_bytes, &budget).await.map(|(object, _)| object)
    }

    /// As [`Self::get`], with memory for the bytes reserved from `budget`. The wait for memory
    /// does not count towards the deadline.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_within(
        &self,
        object: ObjectRef<'_>,
        max_bytes: u64,
        budget: &MemoryBudget,
    ) -> Result<(Object, Reservation)> {
        self.reserve_and_read(object, max_bytes, budget).await.map_err(|error| {
            error.with_context("uri", format_args!("s3://{}/{}", object.bucket, object.key))
        })
    }

    async fn reserve_and_read(
        &self,
        object: ObjectRef<'_>,
        max_bytes: u64,
        budget: &MemoryBudget,
    ) -> Result<(Object, Reservation)> {
        // Made between two requests, after a response that waited for memory too long.
        let mut early: Option<Reservation> = None;
        loop {
            let began = Instant::now();
            let response = with_deadline(self.timeout, self.send_get(object)).await?;
            let left = self.timeout.saturating_sub(began.elapsed());
            let length = response.content_length().and_then(|length| u64::try_from(length).ok());
            if let Some(bytes) = length.filter(|bytes| *bytes > max_bytes) {
                return Err(too_large(bytes, max_bytes));
            }
            let needed = length.unwrap_or(max_bytes);
            let reserved = match early.take().filter(|reserved| reserved.covers(needed)) {
                Some(reserved) => Ok(reserved),
                None => tokio::time::timeout(RESERVATION_TIMEOUT, budget.reserve(needed)).await,
            };
            let Ok(reservation) = reserved else {
                // No connection stays open during a long wait: the request is sent again later.
                drop(response);
                early = Some(budget.reserve(needed).await);
                continue;
            };
            let body = Self::read_body(response, object, length, max_bytes);
            return Ok((with_deadline(left, body).await?, reservation));
        }
    }

    /// Reads a response to its end. HTTP checks that a body has the announced `length`.
    async fn read_body(
        mut response: GetObjectOutput,
        object: ObjectRef<'_>,
        length: Option<u64>,
        max_bytes: u64,
    ) -> Result<Object> {
        let mut bytes = Vec::with_capacity(usize::try_from(length.unwrap_or(0)).unwrap_or(0));
        while let Some(chunk) = response.body.try_next().await.map_err(errors::body_error)? {
            // A response may have no length.
            let received = (bytes.len() as u64).saturating_add(chunk.len() as u64);
            if received > max_bytes {
                return Err(too_large(received, max_bytes));
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() {
            return Err(Error::new(ErrorKind::EmptyObject, "the object has no bytes"));
        }
        let etag = response.e_tag().map(|etag| unquoted(etag).to_owned());
        check_etag(object.etag, etag.as_deref())?;
        Ok(Object { bytes, etag, version_id: response.version_id().map(str::to_owned) })
    }

    /// Requests an object that does not exist: any response about it, "no such key" or
    /// "forbidden", shows that the store is up.
    ///
    /// # Errors
    /// Only transient ones: no response, "slow down", 5xx.
    pub async fn probe(&self, bucket: &str) -> Result<()> {
        let key = format!("fusioncap-probe-{}", uuid::Uuid::new_v4());
        let object = ObjectRef { bucket, key: &key, version_id: None, etag: None };
        match with_deadline(self.timeout, self.send_get(object)).await {
            Err(error) if error.disposition() == Disposition::Retry => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists every key of `bucket` that begins with `prefix`, in the store's order.
    ///
    /// # Errors
    /// The last one, once the retries of `s3` are used up.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<Entry>> {
        object_name::check_bucket(bucket)?;
        let mut entries = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = retry(
                self.policy,
                || {
                    let request = self
                        .client
                        .list_objects_v2()
                        .bucket(bucket)
                        .prefix(prefix)
                        .set_continuation_token(token.clone());
                    with_deadline(self.timeout, async {
                        request.send().await.map_err(errors::classify)
                    })
                },
                |_, _, _| true,
            )
            .await;
            let (page, _) = page.map_err(|failure| {
                failure.error.with_context("uri", format_args!("s3://{bucket}/{prefix}"))
            })?;
            entries.extend(page.contents().iter().filter_map(|object| {
                let bytes = u64::try_from(object.size().unwrap_or(0)).unwrap_or(0);
                let etag = object.e_tag().map(|etag| unquoted(etag).to_owned());
                let modified = object.last_modified().and_then(|time| time.to_millis().ok());
                object.key().map(|key| Entry { key: key.to_owned(), bytes, etag, modified })
            }));
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(entries);
            }
        }
    }

    /// Lists the objects under `uri` (`s3://bucket/prefix`) whose path below the prefix passes
    /// `is_needed`, in the store's order.
    ///
    /// # Errors
    /// `ErrorKind::ObjectNotFound` if there are none; as [`Self::list`].
    pub async fn list_prefix(
        &self,
        uri: &str,
        is_needed: impl Fn(&str) -> bool,
    ) -> Result<Vec<Entry>> {
        let (bucket, prefix) = bucket_and_prefix(uri)?;
        let mut entries = self.list(&bucket, &prefix).await?;
        // Consoles write keys that end in `/` to show empty folders.
        entries.retain(|entry| {
            let name = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
            !name.ends_with('/') && is_needed(name)
        });
        if entries.is_empty() {
            return Err(Error::new(
                ErrorKind::ObjectNotFound,
                "nothing is stored under the prefix",
            )
            .with_context("uri", uri));
        }
        Ok(entries)
    }

    /// Downloads the objects of [`Self::list_prefix`] into `dir`, which is created. The part of a
    /// key after the prefix is its path in `dir`.
    ///
    /// # Errors
    /// As [`Self::list_prefix`]; `ErrorKind::Io` if a file can't be written.
    pub async fn download_prefix(
        &self,
        uri: &str,
        dir: &Path,
        is_needed: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let (bucket, prefix) = bucket_and_prefix(uri)?;
        for entry in self.list_prefix(uri, is_needed).await? {
            let path = dir.join(path_below(&entry.key, &prefix)?);
            retry(self.policy, || self.download(&bucket, &entry.key, &path), |_, _, _| true)
                .await
                .map_err(|failure| {
                    failure.error.with_context("uri", format_args!("s3://{bucket}/{}", entry.key))
                })?;
        }
        Ok(())
    }

    async fn download(&self, bucket: &str, key: &str, path: &Path) -> Result<()> {
        let unwritable = |error: std::io::Error| Error::unwritable(path, error);
        with_deadline(FILE_TIMEOUT, async {
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await.map_err(unwritable)?;
            }
            let object = ObjectRef { bucket, key, version_id: None, etag: None };
            let mut response = self.send_get(object).await?;
            let mut file = tokio::fs::File::create(path).await.map_err(unwritable)?;
            while let Some(chunk) = response.body.try_next().await.map_err(errors::body_error)? {
                file.write_all(&chunk).await.map_err(unwritable)?;
            }
            file.flush().await.map_err(unwritable)
        })
        .await
    }

    async fn send_get(&self, object: ObjectRef<'_>) -> Result<GetObjectOutput> {
        object_name::check_bucket(object.bucket)?;
        object_name::check_key(object.key)?;
        self.client
            .get_object()
            .bucket(object.bucket)
            .key(object.key)
            .set_version_id(object.version_id.map(str::to_owned))
            .set_if_match(object.etag.map(|etag| format!("\"{}\"", unquoted(etag))))
            .send()
            .await
            .map_err(errors::classify)
    }
}

fn static_credentials(settings: &config::S3) -> Result<Option<Credentials>> {
    match (&settings.access_key_id, &settings.secret_access_key) {
        (None, None) => Ok(None),
        (Some(id), Some(secret)) => {
            let token = settings.session_token.as_ref().map(|token| token.reveal().to_owned());
            Ok(Some(Credentials::new(id, secret.reveal(), token, None, "fusioncap-config")))
        }
        (Some(_), None) => Err(Error::new(
            ErrorKind::Config,
            "s3.access_key_id is set but s3.secret_access_key is not",
        )),
        (None, Some(_)) => Err(Error::new(
            ErrorKind::Config,
            "s3.secret_access_key is set but s3.access_key_id is not",
        )),
    }
}

async fn with_deadline<T>(limit: Duration, request: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::FetchTimeout, "the object store did not answer in time")
            .with_context("limit_ms", limit.as_millis()))
    })
}

/// Some stores ignore `If-Match` and send the object.
fn check_etag(expected: Option<&str>, found: Option<&str>) -> Result<()> {
    let (Some(expected), Some(found)) = (expected, found) else {
        return Ok(());
    };
    if unquoted(expected) == found {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::EtagMismatch,
        "the object has changed since the reference was written",
    )
    .with_context("expected", unquoted(expected))
    .with_context("found", found))
}

fn unquoted(etag: &str) -> &str {
    etag.trim_matches('"')
}

fn too_large(bytes: u64, limit: u64) -> Error {
    Error::new(ErrorKind::ObjectTooLarge, "the object is larger than limits.max_object_bytes")
        .with_context("bytes", bytes)
        .with_context("limit", limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn etags_are_compared_without_quotes() {
        assert!(check_etag(Some("\"abc\""), Some("abc")).is_ok());
        assert!(check_etag(Some("abc"), None).is_ok());
        assert!(check_etag(None, Some("abc")).is_ok());
        let error = check_etag(Some("abc"), Some("abd")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EtagMismatch);
    }

    #[test]
    fn incomplete_credentials_are_a_wrong_configuration() {
        let half = config::S3 { access_key_id: Some("id".into()), ..Default::default() };
        assert_eq!(static_credentials(&half).unwrap_err().kind(), ErrorKind::Config);
        let both = config::S3 { secret_access_key: Some(Secret::new("secret")), ..half };
        assert!(static_credentials(&both).unwrap().is_some());
    }

    #[tokio::test]
    async fn deadlines_are_timeouts() {
        let endless = std::future::pending::<Result<()>>();
        let error = with_deadline(Duration::from_millis(5), endless).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchTimeout);
    }
}
