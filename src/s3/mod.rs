//! The S3 client as configured, and the few calls the project makes with it: one object whole,
//! the keys under a prefix, a prefix into a directory.
//!
//! The SDK's own retries are off: a call here is one try with one deadline, and who calls decides
//! through `retry` whether there is another. Errors carry the kind that the dead-letter topic
//! names (see `errors`). No request is made for what [`object_name`](crate::object_name) refuses, and no redirect is followed.

mod errors;
mod memory_budget;

use std::future::Future;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
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
pub use memory_budget::{Room, Taken};

/// A connection that takes longer has failed; the whole-request deadline is the caller's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may wait for room for its body: stores cut connections that stand still.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// Deadline for one file of a model bundle; such files are large.
const FILE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// `s3://bucket/key`, where the key may be empty or a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub bucket: String,
    pub key: String,
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Self> {
        let wrong =
            || Error::new(ErrorKind::UnsupportedUri, "not an s3://bucket/key URI").with("uri", uri);
        let path = uri.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            return Err(wrong());
        }
        object_name::check_bucket(bucket)?;
        Ok(Self { bucket: bucket.into(), key: key.into() })
    }
}

impl From<&config::S3> for Policy {
    fn from(settings: &config::S3) -> Self {
        Self {
            max_attempts: settings.max_attempts,
            initial: Duration::from_millis(settings.backoff_initial_ms),
            max: Duration::from_millis(settings.backoff_max_ms),
        }
    }
}

/// Which object, and which of its states.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRef<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub version_id: Option<&'a str>,
    /// With or without quotes; any other ETag is an error.
    pub etag: Option<&'a str>,
}

/// An object, read whole.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// Without quotes.
    pub etag: Option<String>,
    pub version_id: Option<String>,
}

/// A key under a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub bytes: u64,
    /// Without quotes.
    pub etag: Option<String>,
    /// When it was written, in milliseconds since 1970.
    pub modified: Option<i64>,
}

/// The object store.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    timeout: Duration,
    policy: Policy,
}

impl Store {
    /// Builds the client and asks the credential chain once. Nothing is sent to the store: wrong
    /// credentials show at the first request.
    ///
    /// # Errors
    /// `ErrorKind::Config` when there are no credentials, or half of them.
    pub async fn connect(settings: &config::S3) -> Result<Self> {
        let timeout = Duration::from_millis(settings.timeout_ms);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .retry_config(RetryConfig::disabled())
            // Slow bodies meet the whole-request deadline.
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
                Error::new(ErrorKind::Config, "no S3 credentials")
                    .with("fields", "s3.access_key_id, s3.secret_access_key")
                    .with("otherwise", "the AWS credential chain, which has none either")
                    .because(error)
            })?;
        }
        let specific = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(settings.force_path_style)
            .build();
        Ok(Self { client: Client::from_conf(specific), timeout, policy: Policy::from(settings) })
    }

    /// Reads an object of 1 to `max_bytes` bytes, within `s3.timeout_ms` in all.
    pub async fn get(&self, object: ObjectRef<'_>, max_bytes: u64) -> Result<Object> {
        let room = Room::new(max_bytes);
        self.get_into(object, max_bytes, &room).await.map(|(object, _)| object)
    }

    /// The same, once there is room for its bytes, and what it takes up of it. Waiting for room
    /// is no part of the deadline.
    pub async fn get_into(
        &self,
        object: ObjectRef<'_>,
        max_bytes: u64,
        room: &Room,
    ) -> Result<(Object, Taken)> {
        self.opened_and_read(object, max_bytes, room).await.map_err(|error| {
            error.with("uri", format_args!("s3://{}/{}", object.bucket, object.key))
        })
    }

    async fn opened_and_read(
        &self,
        object: ObjectRef<'_>,
        max_bytes: u64,
        room: &Room,
    ) -> Result<(Object, Taken)> {
        // What an answer had no room for: taken before the next request.
        let mut taken: Option<Taken> = None;
        loop {
            let began = Instant::now();
            let output = within(self.timeout, self.open(object)).await?;
            let left = self.timeout.saturating_sub(began.elapsed());
            let announced = output.content_length().and_then(|length| u64::try_from(length).ok());
            if let Some(bytes) = announced.filter(|bytes| *bytes > max_bytes) {
                return Err(too_large(bytes, max_bytes));
            }
            let needed = announced.unwrap_or(max_bytes);
            let found = match taken.take().filter(|taken| taken.holds(needed)) {
                Some(enough) => Ok(enough),
                None => tokio::time::timeout(ROOM_PATIENCE, room.take(needed)).await,
            };
            let Ok(found) = found else {
                // Asked for again when there is room: nobody waits with an open connection.
                drop(output);
                taken = Some(room.take(needed).await);
                continue;
            };
            let read = within(left, Self::body(output, object, announced, max_bytes)).await?;
            return Ok((read, found));
        }
    }

    /// Reads an answer to its end. HTTP holds the store to what it announced.
    async fn body(
        mut output: GetObjectOutput,
        object: ObjectRef<'_>,
        announced: Option<u64>,
        max_bytes: u64,
    ) -> Result<Object> {
        let mut bytes = Vec::with_capacity(usize::try_from(announced.unwrap_or(0)).unwrap_or(0));
        while let Some(chunk) = output.body.try_next().await.map_err(errors::body)? {
            // The announced length is the server's word; what arrives is counted too.
            let length = (bytes.len() as u64).saturating_add(chunk.len() as u64);
            if length > max_bytes {
                return Err(too_large(length, max_bytes));
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() {
            return Err(Error::new(ErrorKind::EmptyObject, "the object has no bytes"));
        }
        let etag = output.e_tag().map(|etag| unquoted(etag).to_owned());
        check_etag(object.etag, etag.as_deref())?;
        Ok(Object { bytes, etag, version_id: output.version_id().map(str::to_owned) })
    }

    /// Asks for an object that does not exist: any answer about it, "no such key" or "forbidden",
    /// shows that the store is up.
    ///
    /// # Errors
    /// Only such as may pass: no answer, "slow down", 5xx.
    pub async fn probe(&self, bucket: &str) -> Result<()> {
        let key = format!("fusioncap-probe-{}", uuid::Uuid::new_v4());
        let object = ObjectRef { bucket, key: &key, version_id: None, etag: None };
        match within(self.timeout, self.open(object)).await {
            Err(error) if error.disposition() == Disposition::Retry => Err(error),
            _ => Ok(()),
        }
    }

    /// Every key of `bucket` that begins with `prefix`, in the store's order.
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
                    within(self.timeout, async { request.send().await.map_err(errors::classify) })
                },
                |_, _, _| true,
            )
            .await;
            let (page, _) = page.map_err(|gave_up| {
                gave_up.error.with("uri", format_args!("s3://{bucket}/{prefix}"))
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

    /// What is stored under `uri` (`s3://bucket/prefix`), in the store's order: of the paths below
    /// the prefix those that `is_needed`.
    ///
    /// # Errors
    /// `ErrorKind::ObjectNotFound` when nothing is there.
    pub async fn list_prefix(
        &self,
        uri: &str,
        is_needed: impl Fn(&str) -> bool,
    ) -> Result<Vec<Entry>> {
        let (bucket, prefix) = folder(uri)?;
        let mut entries = self.list(&bucket, &prefix).await?;
        // Keys that end in `/` are what consoles write to show an empty folder.
        entries.retain(|entry| {
            let name = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
            !name.ends_with('/') && is_needed(name)
        });
        if entries.is_empty() {
            return Err(Error::new(
                ErrorKind::ObjectNotFound,
                "nothing is stored under the prefix",
            )
            .with("uri", uri));
        }
        Ok(entries)
    }

    /// Copies what [`Self::list_prefix`] finds into `dir`, which is made, keeping the part of each
    /// key behind the prefix as its path.
    ///
    /// # Errors
    /// As [`Self::list_prefix`]; `ErrorKind::Io` where it can't be written.
    pub async fn download_prefix(
        &self,
        uri: &str,
        dir: &Path,
        is_needed: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let (bucket, prefix) = folder(uri)?;
        for entry in self.list_prefix(uri, is_needed).await? {
            let path = dir.join(relative(&entry.key, &prefix)?);
            retry(self.policy, || self.save(&bucket, &entry.key, &path), |_, _, _| true)
                .await
                .map_err(|gave_up| {
                    gave_up.error.with("uri", format_args!("s3://{bucket}/{}", entry.key))
                })?;
        }
        Ok(())
    }

    async fn save(&self, bucket: &str, key: &str, path: &Path) -> Result<()> {
        let written = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "can't write").with("path", path.display()).because(error)
        };
        within(FILE_TIMEOUT, async {
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await.map_err(written)?;
            }
            let object = ObjectRef { bucket, key, version_id: None, etag: None };
            let mut output = self.open(object).await?;
            let mut file = tokio::fs::File::create(path).await.map_err(written)?;
            while let Some(chunk) = output.body.try_next().await.map_err(errors::body)? {
                file.write_all(&chunk).await.map_err(written)?;
            }
            file.flush().await.map_err(written)
        })
        .await
    }

    async fn open(&self, object: ObjectRef<'_>) -> Result<GetObjectOutput> {
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

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::FetchTimeout, "the object store did not answer in time")
            .with("limit_ms", limit.as_millis()))
    })
}

/// A store that knows no `If-Match` sends the object all the same.
fn check_etag(expected: Option<&str>, found: Option<&str>) -> Result<()> {
    let (Some(expected), Some(found)) = (expected, found) else {
        return Ok(());
    };
    if unquoted(expected) == found {
        return Ok(());
    }
    Err(Error::new(ErrorKind::EtagMismatch, "the object has changed since it was referred to")
        .with("expected", unquoted(expected))
        .with("found", found))
}

fn unquoted(etag: &str) -> &str {
    etag.trim_matches('"')
}

fn too_large(bytes: u64, limit: u64) -> Error {
    Error::new(ErrorKind::ObjectTooLarge, "the object is larger than limits.max_object_bytes")
        .with("bytes", bytes)
        .with("limit", limit)
}

/// The bucket of `uri`, and the prefix of everything below it.
fn folder(uri: &str) -> Result<(String, String)> {
    let Location { bucket, key } = uri.parse()?;
    let prefix = match key.trim_end_matches('/') {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    Ok((bucket, prefix))
}

/// The path of `key` below `prefix`; keys are free text, so one could point out of the directory.
fn relative(key: &str, prefix: &str) -> Result<PathBuf> {
    let path = PathBuf::from(key.strip_prefix(prefix).unwrap_or(key));
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.as_os_str().is_empty() {
        return Err(
            Error::new(ErrorKind::Bundle, "a key is no path below its prefix").with("key", key)
        );
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn locations_are_read() {
        let parse = |uri: &str| uri.parse::<Location>().map(|found| (found.bucket, found.key));
        assert_eq!(parse("s3://photos/a/b.jpg").unwrap(), ("photos".into(), "a/b.jpg".into()));
        assert_eq!(parse("s3://photos").unwrap(), ("photos".into(), String::new()));
        for wrong in ["", "s3://", "s3:///key", "https://photos/a", "photos/a", "s3://a@b/c"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::UnsupportedUri, "{wrong}");
        }
    }

    #[test]
    fn keys_stay_below_their_prefix() {
        assert_eq!(relative("m/onnx/a.onnx", "m/").unwrap(), PathBuf::from("onnx/a.onnx"));
        for wrong in ["m/../../etc/passwd", "m//etc/passwd", "m/"] {
            assert_eq!(relative(wrong, "m/").unwrap_err().kind(), ErrorKind::Bundle, "{wrong}");
        }
    }

    #[test]
    fn etags_are_compared_without_quotes() {
        assert!(check_etag(Some("\"abc\""), Some("abc")).is_ok());
        assert!(check_etag(Some("abc"), None).is_ok());
        assert!(check_etag(None, Some("abc")).is_ok());
        let error = check_etag(Some("abc"), Some("abd")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EtagMismatch);
    }

    #[test]
    fn half_of_the_credentials_is_a_wrong_configuration() {
        let half = config::S3 { access_key_id: Some("id".into()), ..Deerrors::default() };
        assert_eq!(static_credentials(&half).unwrap_err().kind(), ErrorKind::Config);
        let both = config::S3 { secret_access_key: Some(Secret::new("secret")), ..half };
        assert!(static_credentials(&both).unwrap().is_some());
    }

    #[tokio::test]
    async fn deadlines_are_timeouts() {
        let endless = std::future::pending::<Result<()>>();
        let error = within(Duration::from_millis(5), endless).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FetchTimeout);
    }
}
