//! A client of Confluent's Schema Registry API, version 1: the calls that are needed here.
//!
//! The one thing to know: a statement of the registry about a schema (it does not exist, it does not
//! fit) is an answer. Everything else, from broken connections to refused credentials and a proxy's
//! error pages, is an error of `ErrorKind::Registry`, which may be gone at the next attempt.

use std::time::Duration;

use reqwest::{Certificate, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::{self, Secret};
use crate::error::{Error, ErrorKind, Result};

/// Longest quotation of an answer in an error, in characters.
const MAX_QUOTE: usize = 300;
/// The kind of a schema without `schemaType`.
pub const AVRO: &str = "AVRO";

/// Calls one registry.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    login: Login,
}

#[derive(Debug)]
enum Login {
    None,
    Basic(String, Secret),
    Bearer(Secret),
}

/// A schema as the API carries it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Schema {
    pub schema: String,
    /// [`AVRO`] where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_type: Option<String>,
    /// Other schemas that it refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<serde_json::Value>,
}

impl Schema {
    pub fn kind(&self) -> &str {
        self.schema_type.as_deref().unwrap_or(AVRO)
    }
}

/// A schema under a subject.
#[derive(Clone, Debug, Deserialize)]
pub struct Version {
    pub id: u32,
    pub version: u32,
    #[serde(flatten)]
    pub schema: Schema,
}

/// Whether a schema may follow the latest of its subject.
#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    pub is_compatible: bool,
    /// Confluent's reasons.
    #[serde(default)]
    messages: Vec<String>,
    /// Apicurio's reason.
    #[serde(default)]
    reason: Option<String>,
}

impl Verdict {
    pub fn reason(&self) -> String {
        let reason = self.reason.clone().unwrap_or_default();
        if self.messages.is_empty() { reason } else { self.messages.join("; ") }
    }
}

#[derive(Deserialize)]
struct Id {
    id: u32,
}

#[derive(Deserialize)]
struct Level {
    #[serde(rename = "compatibilityLevel")]
    level: String,
}

/// The registry's error answer.
#[derive(Clone, Debug, Deserialize)]
struct Refusal {
    error_code: i64,
    #[serde(default)]
    message: String,
}

impl Refusal {
    /// No such subject, version, schema or level: 40401, 40402, 40403, 40408.
    fn is_absence(&self) -> bool {
        self.error_code / 100 == 404
    }
}

enum Answer<T> {
    Found(T),
    Refused(StatusCode, Refusal),
}

impl<T> Answer<T> {
    fn or_absent(self) -> Result<Option<T>> {
        match self {
            Self::Found(found) => Ok(Some(found)),
            Self::Refused(_, refusal) if refusal.is_absence() => Ok(None),
            Self::Refused(status, refusal) => Err(refused(status, refusal)),
        }
    }
}

impl Client {
    /// # Errors
    /// `ErrorKind::Config` for a file of certificates that can't be read.
    pub fn new(settings: &config::Registry, url: &str) -> Result<Self> {
        let wrong = |message: &'static str| Error::new(ErrorKind::Config, message);
        let mut base = Url::parse(url)
            .map_err(|error| wrong("registry.url can't be used").with_source(error))?;
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let timeout = Duration::from_millis(settings.timeout_ms);
        let mut http = reqwest::Client::builder()
            .timeout(timeout)
            .user_agent(concat!("fusioncap/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &settings.ca_file {
            let unusable =
                || wrong("registry.ca_file can't be used").with_context("path", path.display());
            let pem = std::fs::read(path).map_err(|error| unusable().with_source(error))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| unusable().with_source(error))?;
            if certificates.is_empty() {
                return Err(unusable().with_context("allowed", "certificates in PEM"));
            }
            http = http.tls_certs_only(certificates);
        } else if base.scheme() == "http" {
            // Otherwise a system without certificates would fail without need.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| {
            Error::new(ErrorKind::Registry, "no client of the registry can be created")
                .with_source(error)
        })?;
        let login = match (&settings.username, &settings.password, &settings.bearer_token) {
            (Some(user), Some(password), _) => Login::Basic(user.clone(), password.clone()),
            (_, _, Some(token)) => Login::Bearer(token.clone()),
            _ => Login::None,
        };
        Ok(Self { http, base, login })
    }

    /// The version of `subject` with exactly this schema, or with the same schema in another form:
    /// other whitespace, or another order of keys.
    pub async fn lookup(&self, subject: &str, schema: &Schema) -> Result<Option<Version>> {
        let mut url = self.url(&["subjects", subject]);
        let exact = self.send(self.http.post(url.clone()).json(schema)).await?.or_absent()?;
        if exact.is_some() {
            return Ok(exact);
        }
        url.set_query(Some("normalize=true"));
        self.send(self.http.post(url).json(schema)).await?.or_absent()
    }

    /// Registers a schema, unless it is registered already; returns its id.
    ///
    /// # Errors
    /// `ErrorKind::Config` where the registry refuses the schema as invalid or incompatible.
    pub async fn register(&self, subject: &str, schema: &Schema) -> Result<u32> {
        let url = self.url(&["subjects", subject, "versions"]);
        match self.send::<Id>(self.http.post(url).json(schema)).await? {
            Answer::Found(Id { id }) => Ok(id),
            Answer::Refused(StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY, refusal) => {
                Err(Error::new(ErrorKind::Config, "the registry refuses a schema")
                    .with_context("subject", subject)
                    .with_context("answer", quote(&refusal.message)))
            }
            Answer::Refused(status, refusal) => Err(refused(status, refusal)),
        }
    }

    pub async fn latest(&self, subject: &str) -> Result<Option<Version>> {
        let url = self.url(&["subjects", subject, "versions", "latest"]);
        self.send(self.http.get(url)).await?.or_absent()
    }

    /// Whether `schema` may follow the latest version of `subject`, by the subject's own level; None
    /// where the subject has no version.
    pub async fn compatibility(&self, subject: &str, schema: &Schema) -> Result<Option<Verdict>> {
        let mut url = self.url(&["compatibility", "subjects", subject, "versions", "latest"]);
        url.set_query(Some("verbose=true"));
        self.send(self.http.post(url).json(schema)).await?.or_absent()
    }

    /// The compatibility level of `subject`: its own, or else the registry's.
    pub async fn level(&self, subject: &str) -> Result<Option<String>> {
        let own = self.send::<Level>(self.http.get(self.url(&["config", subject]))).await?;
        if let Some(Level { level }) = own.or_absent()? {
            return Ok(Some(level));
        }
        let global = self.send::<Level>(self.http.get(self.url(&["config"]))).await?;
        Ok(global.or_absent()?.map(|found| found.level))
    }

    /// The schema with this id.
    pub async fn schema(&self, id: u32) -> Result<Option<Schema>> {
        let url = self.url(&["schemas", "ids", &id.to_string()]);
        self.send(self.http.get(url)).await?.or_absent()
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Only URLs without a host have no path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<Answer<T>> {
        let silent = |error: reqwest::Error| {
            Error::new(ErrorKind::Registry, "the schema registry does not answer")
                .with_context("registry.url", &self.base)
                // Its text repeats the URL.
                .with_source(error.without_url())
        };
        let request = match &self.login {
            Login::None => request,
            Login::Basic(user, password) => request.basic_auth(user, Some(password.reveal())),
            Login::Bearer(token) => request.bearer_auth(token.reveal()),
        };
        let request = request
            .header("Accept", "application/vnd.schemaregistry.v1+json, application/json;q=0.9");
        let response = request.send().await.map_err(silent)?;
        let status = response.status();
        let body = response.bytes().await.map_err(silent)?;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(Error::new(ErrorKind::Registry, "the schema registry refuses access")
                .with_context("registry.url", &self.base)
                .with_context("status", status.as_u16())
                .with_context(
                    "fields",
                    "registry.username and password, or registry.bearer_token",
                ));
        }
        let unclear = || {
            Error::new(ErrorKind::Registry, "the schema registry's answer can't be parsed")
                .with_context("registry.url", &self.base)
                .with_context("status", status.as_u16())
                .with_context("answer", quote(&String::from_utf8_lossy(&body)))
        };
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map(Answer::Found)
                .map_err(|error| unclear().with_source(error));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if status.is_client_error() => Ok(Answer::Refused(status, refusal)),
            _ => Err(unclear()),
        }
    }
}

fn refused(status: StatusCode, refusal: Refusal) -> Error {
    Error::new(ErrorKind::Registry, "the schema registry refuses a request")
        .with_context("status", status.as_u16())
        .with_context("code", refusal.error_code)
        .with_context("answer", quote(&refusal.message))
}

fn quote(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// One request for a schema as a server sees it, and the result of its answer.
    async fn exchange(
        settings: config::Registry,
        answer: &str,
    ) -> (String, Result<Option<Schema>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let client = Client::new(&settings, &url).unwrap();
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8(request).unwrap()
        };
        tokio::join!(served, client.schema(7))
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn with_password() -> config::Registry {
        config::Registry {
            username: Some("worker".into()),
            password: Some(Secret::new("hush-hush")),
            ..config::Registry::default()
        }
    }

    #[tokio::test]
    async fn credentials_are_sent_and_never_shown() {
        let (request, result) = exchange(with_password(), &answer("401 Unauthorized", "no")).await;
        assert!(request.starts_with("GET /base/schemas/ids/7 HTTP/1.1"), "{request}");
        // worker:hush-hush
        assert!(request.contains("Basic d29ya2VyOmh1c2gtaHVzaA=="), "{request}");
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Registry);
        assert!(error.to_string().contains("registry.username"), "{error}");
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        let token = config::Registry {
            bearer_token: Some(Secret::new("hush-token")),
            ..config::Registry::default()
        };
        let (request, result) = exchange(token, &answer("403 Forbidden", "{}")).await;
        assert!(request.to_lowercase().contains("authorization: bearer hush-token"), "{request}");
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Registry);
    }

    /// Only the registry itself can say that a schema does not exist; a proxy's page can't.
    #[tokio::test]
    async fn only_the_registry_reports_absence() {
        let absent = answer("404 Not Found", r#"{"error_code": 40403, "message": "none"}"#);
        let (_, result) = exchange(config::Registry::default(), &absent).await;
        assert_eq!(result.unwrap(), None);
        let found = answer("200 OK", r#"{"schema": "\"string\""}"#);
        let (_, result) = exchange(config::Registry::default(), &found).await;
        assert_eq!(result.unwrap().unwrap().kind(), AVRO);
        for other in [
            answer("404 Not Found", "<html>no such page</html>"),
            answer("404 Not Found", r#"{"error_code": 404, "message": "HTTP 404 Not Found"}"#),
            answer("500 Oops", r#"{"error_code": 40403}"#),
            answer("200 OK", "<html>log in</html>"),
            answer("429 Too Many Requests", "{}"),
            String::new(),
        ] {
            let (_, result) = exchange(config::Registry::default(), &other).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Registry, "{other}");
        }
    }

    #[test]
    fn files_without_certificates_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("ca.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        for path in [empty, folder.path().join("absent.pem")] {
            let settings = config::Registry { ca_file: Some(path), ..config::Registry::default() };
            let error = Client::new(&settings, "https://registry").unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("registry.ca_file"), "{error}");
        }
    }
}
