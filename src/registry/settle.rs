//! At the start: which id a schema has under its subject, and whether it may stand there.
//!
//! A schema that its subject has already is taken as it is, even where a newer version follows it:
//! so an older worker can come back. One that is new there must be able to read what the latest
//! version has written (`BACKWARD`). The registry says so by the subject's own level, which may be
//! `NONE`; of Avro it is therefore also worked out here.

use std::time::{Duration, Instant};

use apache_avro::Schema as Avro;
use apache_avro::schema_compatibility::SchemaCompatibility;

use super::client::{AVRO, Client, Schema, Version};
use super::schemas::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::retry::{Policy, retry};

/// How long the registry may not answer at the start.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Levels that hold `BACKWARD`.
const LEVELS: [&str; 4] = ["BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"];

/// A schema and where it is to stand.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    pub subject: &'w str,
    pub schema: &'w Schema,
    pub kind: Kind,
}

/// The schema's id.
///
/// # Errors
/// As [`super::Registry::encoder`].
pub async fn settle(client: &Client, wanted: &Wanted<'_>, register: bool) -> Result<u32> {
    let began = Instant::now();
    let policy = Policy::endless(Duration::from_millis(200), Duration::from_secs(2));
    let ended = retry(
        policy,
        || once(client, wanted, register),
        |error, _, pause| {
            tracing::warn!(error = error.chain(), "the schema registry is asked again");
            began.elapsed() + pause < PATIENCE
        },
    )
    .await;
    let id = ended.map_err(|gave_up| gave_up.error)?.0;
    tracing::info!(subject = wanted.subject, id, "schema settled");
    Ok(id)
}

async fn once(client: &Client, wanted: &Wanted<'_>, register: bool) -> Result<u32> {
    let &Wanted { subject, schema, .. } = wanted;
    if let Some(found) = client.lookup(subject, schema).await? {
        check_level(client, subject).await;
        return Ok(found.id);
    }
    if !register {
        return Err(Error::new(ErrorKind::Config, "the registry does not have the schema")
            .with("subject", subject)
            .with("schema", wanted.kind.name())
            .with("allowed", "to register it beforehand, or registry.auto_register: true"));
    }
    check(client, wanted).await?;
    let id = client.register(subject, schema).await?;
    check_level(client, subject).await;
    Ok(id)
}

/// Refuses a schema that can't read what the latest version has written.
async fn check(client: &Client, wanted: &Wanted<'_>) -> Result<()> {
    let &Wanted { subject, schema, .. } = wanted;
    let Some(latest) = client.latest(subject).await? else {
        return Ok(());
    };
    let incompatible = |reason: String| {
        Error::new(ErrorKind::Config, "the schema is not compatible with the one registered")
            .with("subject", subject)
            .with("version", latest.version)
            .with("reason", reason)
    };
    let (found, ours) = (latest.schema.kind(), schema.kind());
    // What a registry says to that differs.
    if found != ours {
        return Err(incompatible(format!("it is {found}, and ours {ours}")));
    }
    let verdict = client.compatibility(subject, schema).await?;
    if let Some(verdict) = verdict.filter(|verdict| !verdict.is_compatible) {
        return Err(incompatible(verdict.reason()));
    }
    unreadable(&latest, wanted.kind).map_or(Ok(()), |reason| Err(incompatible(reason)))
}

/// Why our schema can't read what `latest` has written, as far as that can be known here.
fn unreadable(latest: &Version, kind: Kind) -> Option<String> {
    if latest.schema.kind() != AVRO {
        return None;
    }
    let written = match Avro::parse_str(&latest.schema.schema) {
        Ok(schema) => schema,
        Err(error) => return Some(error.to_string()),
    };
    SchemaCompatibility::can_read(&written, kind.avro()).err().map(|error| error.to_string())
}

/// Says so where the registry would let anything follow.
async fn check_level(client: &Client, subject: &str) {
    match client.level(subject).await {
        Ok(Some(level)) if !LEVELS.contains(&level.as_str()) => tracing::warn!(
            subject,
            level,
            "the registry does not hold later schemas to BACKWARD compatibility"
        ),
        Ok(_) => {}
        // It may be for administrators alone.
        Err(error) => tracing::debug!(error = error.chain(), subject, "the level is not known"),
    }
}
