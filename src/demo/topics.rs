//! Creates and deletes a demonstration's topics on a real Kafka.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use crate::error::{Error, ErrorKind, Result};

/// Partitions of each topic.
pub const PARTITIONS: i32 = 4;
/// Longest wait for topics to be created or deleted.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Creates `topics`, or none: if Kafka refuses one, the others are deleted.
///
/// # Errors
/// `ErrorKind::Kafka` if Kafka can't be reached, or with the topic that it refuses.
pub async fn create(client: &ClientConfig, topics: &[String]) -> Result<()> {
    let refused = |error: KafkaError| {
        Error::new(ErrorKind::Kafka, "can't create the demonstration's topics").with_source(error)
    };
    // -1: the cluster's default number of replicas.
    let wanted: Vec<_> = topics
        .iter()
        .map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1)))
        .collect();
    let created = admin(client).map_err(refused)?.create_topics(&wanted, &options()).await;
    let created = created.map_err(refused)?;
    let Some((topic, code)) = refusals(&created).next() else { return Ok(()) };
    delete(client, &topics_to_remove(&created)).await;
    Err(refused(KafkaError::AdminOp(code)).with_context("topic", topic))
}

/// Deletes `topics`. A warning is logged for each that Kafka refuses to delete.
pub async fn delete(client: &ClientConfig, topics: &[&str]) {
    if topics.is_empty() {
        return;
    }
    let deleted = match admin(client) {
        Ok(admin) => admin.delete_topics(topics, &options()).await,
        Err(error) => Err(error),
    };
    match deleted {
        Ok(results) => refusals(&results).for_each(|(topic, error)| {
            tracing::warn!(%error, topic, "a topic of the demonstration can't be deleted");
        }),
        Err(error) => {
            tracing::warn!(%error, ?topics, "the demonstration's topics can't be deleted");
        }
    }
}

fn admin(client: &ClientConfig) -> KafkaResult<AdminClient<DefaultClientContext>> {
    client.create()
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

/// The topics that Kafka refused to create or delete.
fn refusals(results: &[TopicResult]) -> impl Iterator<Item = (&str, RDKafkaErrorCode)> {
    let refusals = results.iter().filter_map(|result| result.as_ref().err());
    refusals.map(|(topic, code)| (topic.as_str(), *code))
}

/// The topics that a partly refused creation leaves behind. One that timed out may still appear.
fn topics_to_remove(created: &[TopicResult]) -> Vec<&str> {
    let mut topics = Vec::new();
    for result in created {
        if let Ok(topic) | Err((topic, RDKafkaErrorCode::RequestTimedOut)) = result {
            topics.push(topic.as_str());
        }
    }
    topics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_topic_is_named_and_the_others_are_removed() {
        let refused = |topic: &str, code| Err((topic.to_owned(), code));
        let results = [
            Ok("in".to_owned()),
            refused("out", RDKafkaErrorCode::TopicAuthorizationFailed),
            refused("dlq", RDKafkaErrorCode::RequestTimedOut),
        ];
        let expected = [
            ("out", RDKafkaErrorCode::TopicAuthorizationFailed),
            ("dlq", RDKafkaErrorCode::RequestTimedOut),
        ];
        assert_eq!(refusals(&results).collect::<Vec<_>>(), expected);
        assert_eq!(topics_to_remove(&results), ["in", "dlq"]);
        assert_eq!(refusals(&results[..1]).count(), 0);
    }
}
