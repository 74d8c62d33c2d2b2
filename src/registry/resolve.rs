//! Resolves a schema to its id at the start, and registers it where that is allowed.
//!
//! A schema that its subject already has is used as it is, even where a newer version follows it: so
//! an older worker can come back. A new schema must be able to read records of the latest version
//! (`BACKWARD`). The registry checks this by the subject's own level, which may be `NONE`; Avro
//! schemas are therefore checked here as well.

use std::time::{Duration, Instant};

use apache_avro::Schema as Avro;
use apache_avro::schema_compatibility::SchemaCompatibility;

use super::client::{AVRO, Client, Schema, Version};
use super::schemas::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{Policy, retry};

/// How long a registry may be silent at the start.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Levels that include `BACKWARD`.
const LEVELS: [&str; 4] = ["BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"];

/// A schema whose id is requested, and its subject.
#[derive(Clone, Copy, Debug)]
pub struct SchemaRequest<'r> {
    pub subject: &'r str,
    pub schema: &'r Schema,
    pub kind: Kind,
}

/// The id of the requested schema; it is registered where `register` is set and the subject does not
/// have it.
///
/// # Errors
/// As [`super::Registry::encoder`].
pub async fn resolve_id(
    client: &Client,
    request: &SchemaRequest<'_>,
    register: bool,
) -> Result<u32> {
    let began = Instant::now();
    let policy = Policy::unlimited(Duration::from_millis(200), Duration::from_secs(2));
    let ended = retry(
        policy,
        || try_resolve(client, request, register),
        |error, _, pause| {
            tracing::warn!(error = error.chain(), "the schema registry is asked again");
            began.elapsed() + pause < SILENCE_LIMIT
        },
    )
    .await;
    let id = ended.map_err(|failure| failure.error)?.0;
    tracing::info!(subject = request.subject, id, "schema resolved");
    Ok(id)
}

async fn try_resolve(client: &Client, request: &SchemaRequest<'_>, register: bool) -> Result<u32> {
    let &SchemaRequest { subject, schema, .. } = request;
    if let Some(found) = client.lookup(subject, schema).await? {
        warn_of_level(client, subject).await;
        return Ok(found.id);
    }
    if !register {
        return Err(Error::new(ErrorKind::Config, "the registry does not have the schema")
            .with_context("subject", subject)
            .with_context("schema", request.kind.name())
            .with_context(
                "allowed",
                "to register it beforehand, or registry.auto_register: true",
            ));
    }
    check_compatibility(client, request).await?;
    let id = client.register(subject, schema).await?;
    warn_of_level(client, subject).await;
    Ok(id)
}

/// Refuses a schema that can't read records of the latest version.
async fn check_compatibility(client: &Client, request: &SchemaRequest<'_>) -> Result<()> {
    let &SchemaRequest { subject, schema, .. } = request;
    let Some(latest) = client.latest(subject).await? else {
        return Ok(());
    };
    let incompatible = |reason: String| {
        Error::new(ErrorKind::Config, "the schema is not compatible with the one registered")
            .with_context("subject", subject)
            .with_context("version", latest.version)
            .with_context("reason", reason)
    };
    let (found, ours) = (latest.schema.kind(), schema.kind());
    // Registries differ in their answers to that.
    if found != ours {
        return Err(incompatible(format!("it is {found}, and ours {ours}")));
    }
    let verdict = client.compatibility(subject, schema).await?;
    if let Some(verdict) = verdict.filter(|verdict| !verdict.is_compatible) {
        return Err(incompatible(verdict.reason()));
    }
    incompatibility(&latest, request.kind).map_or(Ok(()), |reason| Err(incompatible(reason)))
}

/// Why our schema can't read records of `latest`; None where it can, or the schema is not Avro.
fn incompatibility(latest: &Version, kind: Kind) -> Option<String> {
    if latest.schema.kind() != AVRO {
        return None;
    }
    let written = match Avro::parse_str(&latest.schema.schema) {
        Ok(schema) => schema,
        Err(error) => return Some(error.to_string()),
    };
    SchemaCompatibility::can_read(&written, kind.avro()).err().map(|error| error.to_string())
}

/// Warns where the registry would accept any later schema.
async fn warn_of_level(client: &Client, subject: &str) {
    match client.level(subject).await {
        Ok(Some(level)) if !LEVELS.contains(&level.as_str()) => tracing::warn!(
            subject,
            level,
            "the subject's compatibility level does not include BACKWARD: the registry may accept \
             incompatible schemas"
        ),
        Ok(_) => {}
        // Only administrators may be allowed to read it.
        Err(error) => tracing::debug!(error = error.chain(), subject, "the level is not known"),
    }
}
