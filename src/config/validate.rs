//! Rules between fields, and rules that need a parser. [`super::field`] has already checked the
//! types and ranges of single fields.

use url::Url;

use super::field::display_value;
use super::{Config, Format, Kafka, Registry, Runtime, S3, Topics};
use crate::object_name;

/// Time to leave the consumer group after draining.
pub const LEAVING_MS: u64 = 5_000;

/// librdkafka properties that exactly-once delivery or another field controls, and the effective
/// value or field.
const PROTECTED: [(&str, &str); 19] = [
    ("bootstrap.servers", "set kafka.brokers instead"),
    ("metadata.broker.list", "set kafka.brokers instead"),
    ("group.id", "set kafka.group instead"),
    ("group.instance.id", "set kafka.group_instance_id instead"),
    ("transactional.id", "set kafka.transactional_id instead"),
    ("enable.auto.commit", "always false: offsets are committed in the transaction"),
    ("auto.commit.enable", "always false: offsets are committed in the transaction"),
    ("enable.auto.offset.store", "always false: offsets are committed in the transaction"),
    ("offset.store.method", "offsets are committed in the transaction"),
    ("isolation.level", "always read_committed"),
    ("enable.idempotence", "always true"),
    ("acks", "always all"),
    ("request.required.acks", "always all"),
    ("group.protocol", "set kafka.group_protocol instead"),
    ("group.remote.assignor", "the brokers' own setting applies"),
    ("partition.assignment.strategy", "always cooperative-sticky"),
    ("allow.auto.create.topics", "always false: the operator of Kafka creates the topics"),
    ("enable.partition.eof", "always false: the worker reads without end"),
    ("log.connection.close", "always true: a lost connection leaves a commit in doubt"),
];

/// Properties that the brokers decide if `kafka.group_protocol` is `consumer`.
const DECIDED_BY_BROKERS: [&str; 3] =
    ["session.timeout.ms", "heartbeat.interval.ms", "group.protocol.type"];

/// The effective value or field of a librdkafka property that must not be set.
pub fn protected(property: &str) -> Option<&'static str> {
    PROTECTED.iter().find(|(known, _)| *known == property).map(|(_, instead)| *instead)
}

/// A value that breaks a rule.
#[derive(Debug)]
pub struct Problem {
    pub path: String,
    /// For printing, masked if it is secret.
    pub value: String,
    pub allowed: String,
}

impl Problem {
    fn new(path: &str, value: impl Into<serde_yaml_ng::Value>, allowed: &str) -> Self {
        Self { path: path.into(), value: display_value(&value.into()), allowed: allowed.into() }
    }
}

/// Finds the first rule that `config` breaks.
pub fn check(config: &Config) -> Result<(), Problem> {
    check_kafka(&config.kafka)?;
    check_registry(&config.registry)?;
    check_s3(&config.s3)?;
    check_model_path(&config.model.path)?;
    if config.limits.max_in_flight < config.batch.size {
        return Err(Problem::new(
            "limits.max_in_flight",
            config.limits.max_in_flight,
            &format!("at least batch.size ({})", config.batch.size),
        ));
    }
    if config.limits.max_buffered_bytes < config.limits.max_object_bytes {
        return Err(Problem::new(
            "limits.max_buffered_bytes",
            config.limits.max_buffered_bytes,
            &format!("at least limits.max_object_bytes ({})", config.limits.max_object_bytes),
        ));
    }
    let Runtime { drain_timeout_ms, termination_grace_ms, providers, .. } = &config.runtime;
    if drain_timeout_ms.saturating_add(LEAVING_MS) > *termination_grace_ms {
        return Err(Problem::new(
            "runtime.drain_timeout_ms",
            *drain_timeout_ms,
            &format!(
                "at least {LEAVING_MS} below runtime.termination_grace_ms \
                 ({termination_grace_ms}): the worker must leave its consumer group before the \
                 process is killed"
            ),
        ));
    }
    let repeated = providers
        .iter()
        .enumerate()
        .any(|(index, provider)| providers.iter().skip(index + 1).any(|other| other == provider));
    if repeated {
        let names: Vec<String> =
            providers.iter().map(|provider| format!("{provider:?}").to_lowercase()).collect();
        return Err(Problem::new("runtime.providers", names, "each provider once"));
    }
    Ok(())
}

/// Finds the first rule that the sections `kafka` and `registry` break.
pub fn check_topics(topics: &Topics) -> Result<(), Problem> {
    check_kafka(&topics.kafka)?;
    check_registry(&topics.registry)
}

fn check_kafka(kafka: &Kafka) -> Result<(), Problem> {
    if !kafka.brokers.split(',').all(|broker| is_host_and_port(broker.trim())) {
        return Err(Problem::new(
            "kafka.brokers",
            kafka.brokers.as_str(),
            "host:port[,host:port...]",
        ));
    }
    let topics = [
        ("kafka.input_topic", &kafka.input_topic),
        ("kafka.output_topic", &kafka.output_topic),
        ("kafka.dead_letter_topic", &kafka.dead_letter_topic),
    ];
    for (index, (path, topic)) in topics.iter().enumerate() {
        if !is_topic_name(topic) {
            return Err(Problem::new(
                path,
                topic.as_str(),
                "1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-', not '.' or '..'",
            ));
        }
        if let Some((other, _)) = topics.iter().take(index).find(|(_, name)| name == topic) {
            return Err(Problem::new(path, topic.as_str(), &format!("a topic other than {other}")));
        }
    }
    let is_consumer = kafka.group_protocol == Kafka::CONSUMER;
    if !is_consumer && kafka.group_protocol != Kafka::CLASSIC {
        let value = kafka.group_protocol.as_str();
        return Err(Problem::new("kafka.group_protocol", value, "classic or consumer"));
    }
    for (name, value) in &kafka.properties {
        if is_consumer && DECIDED_BY_BROKERS.contains(&name.as_str()) {
            let path = format!("kafka.properties.{name}");
            let allowed = "unset (the brokers decide it: kafka.group_protocol is consumer)";
            return Err(Problem::new(&path, value.as_str(), allowed));
        }
        if let Some(instead) = protected(name) {
            let path = format!("kafka.properties.{name}");
            return Err(Problem::new(&path, value.as_str(), &format!("unset ({instead})")));
        }
    }
    Ok(())
}

fn check_s3(s3: &S3) -> Result<(), Problem> {
    if let Some(endpoint) = &s3.endpoint {
        check_url("s3.endpoint", endpoint)?;
    }
    let pairs = [
        ("s3.access_key_id", s3.access_key_id.is_some(), "s3.secret_access_key"),
        ("s3.secret_access_key", s3.secret_access_key.is_some(), "s3.access_key_id"),
    ];
    let both = pairs.iter().all(|(_, set, _)| *set);
    if let Some((path, _, other)) = pairs.iter().find(|(_, set, _)| *set && !both) {
        return Err(Problem {
            path: (*path).into(),
            value: "set alone".into(),
            allowed: format!("both {path} and {other}, or neither"),
        });
    }
    if s3.session_token.is_some() && !both {
        return Err(Problem {
            path: "s3.session_token".into(),
            value: "set alone".into(),
            allowed: "only with s3.access_key_id and s3.secret_access_key".into(),
        });
    }
    for entry in &s3.allowed_buckets {
        check_allowed_bucket(entry)?;
    }
    if s3.backoff_max_ms < s3.backoff_initial_ms {
        return Err(Problem::new(
            "s3.backoff_max_ms",
            s3.backoff_max_ms,
            &format!("at least s3.backoff_initial_ms ({})", s3.backoff_initial_ms),
        ));
    }
    Ok(())
}

fn check_registry(registry: &Registry) -> Result<(), Problem> {
    let alone = |path: &str, allowed: &str| Problem {
        path: path.into(),
        value: "set alone".into(),
        allowed: allowed.into(),
    };
    match &registry.url {
        Some(url) => check_url("registry.url", url)?,
        None if registry.format == Format::Json => {}
        None => {
            let allowed = "json, unless registry.url is set";
            let value = serde_yaml_ng::to_value(registry.format).unwrap_or_default();
            return Err(Problem::new("registry.format", value, allowed));
        }
    }
    if registry.username.is_some() != registry.password.is_some() {
        let (path, other) = match registry.username {
            Some(_) => ("registry.username", "registry.password"),
            None => ("registry.password", "registry.username"),
        };
        return Err(alone(path, &format!("both {path} and {other}, or neither")));
    }
    if registry.bearer_token.is_some() && registry.username.is_some() {
        return Err(Problem {
            path: "registry.bearer_token".into(),
            value: "set together with registry.username".into(),
            allowed: "only one of them".into(),
        });
    }
    Ok(())
}

/// `bucket`, or `bucket/prefix/`.
fn check_allowed_bucket(entry: &str) -> Result<(), Problem> {
    let problem = |allowed: &str| Problem::new("s3.allowed_buckets", vec![entry], allowed);
    let (bucket, prefix) = entry.split_once('/').unwrap_or((entry, ""));
    if let Some(rule) = object_name::broken_rule(bucket) {
        return Err(problem(&format!("bucket or bucket/prefix/; bucket name: {rule}")));
    }
    // Without the slash, `photos/public` would also allow `photos/public-not`.
    if !prefix.is_empty() && !prefix.ends_with('/') {
        return Err(problem("bucket or bucket/prefix/, with the final slash"));
    }
    if object_name::check_key(prefix).is_err() {
        return Err(problem("bucket or bucket/prefix/, without '.', '..' and control characters"));
    }
    Ok(())
}

fn check_url(path: &str, endpoint: &str) -> Result<(), Problem> {
    const ALLOWED: &str = "an http:// or https:// URL, without user, query or fragment";
    // A URL with a user may contain a password, so it is not shown.
    let shown = if endpoint.contains('@') { "a URL with a user" } else { endpoint };
    let problem = || Problem::new(path, shown, ALLOWED);
    let url = Url::parse(endpoint).map_err(|_| problem())?;
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain {
        return Ok(());
    }
    Err(problem())
}

fn check_model_path(path: &str) -> Result<(), Problem> {
    const ALLOWED: &str = "a directory or s3://bucket/prefix";
    if path.trim().is_empty() {
        return Err(Problem::new("model.path", path, ALLOWED));
    }
    let Some((scheme, rest)) = path.split_once("://") else {
        return Ok(());
    };
    let has_bucket =
        rest.split('/').next().is_some_and(|bucket| object_name::broken_rule(bucket).is_none());
    if scheme == "s3" && has_bucket {
        return Ok(());
    }
    Err(Problem::new("model.path", path, ALLOWED))
}

fn is_host_and_port(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else {
        return false;
    };
    let is_host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|number| number > 0)
}

/// Kafka's rule (`org.apache.kafka.common.internals.Topic`).
fn is_topic_name(name: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&name.len()) && name.bytes().all(is_legal) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        let text = format!("{{kafka: {{brokers: 'a:1'}}, model: {{path: m}}{extra}}}");
        serde_yaml_ng::from_str(&text).unwrap()
    }

    fn broken_field(config: &Config) -> Option<String> {
        check(config).err().map(|problem| problem.path)
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(broken_field(&config("")), None);
    }

    #[test]
    fn brokers_are_hosts_with_ports() {
        for brokers in ["a:1", "kafka-0.kafka:9092, 10.0.0.1:9092", "[::1]:9092"] {
            assert!(brokers.split(',').all(|broker| is_host_and_port(broker.trim())), "{brokers}");
        }
        for broker in ["", "a", "a:", ":1", "a:0", "a:65536", "http://a:1", "[x]:1", "a b:1"] {
            assert!(!is_host_and_port(broker), "{broker}");
        }
    }

    #[test]
    fn topics_are_legal_and_distinct() {
        let mut wrong = config("");
        wrong.kafka.output_topic = "images.in".into();
        assert_eq!(broken_field(&wrong).as_deref(), Some("kafka.output_topic"));
        wrong.kafka.output_topic = "a b".into();
        assert_eq!(broken_field(&wrong).as_deref(), Some("kafka.output_topic"));
        wrong.kafka.output_topic = "x".repeat(250);
        assert_eq!(broken_field(&wrong).as_deref(), Some("kafka.output_topic"));
    }

    #[test]
    fn protected_properties_are_refused() {
        let mut wrong = config("");
        wrong.kafka.properties = [("acks".to_owned(), "0".to_owned())].into_iter().collect();
        let problem = check(&wrong).unwrap_err();
        assert_eq!(problem.path, "kafka.properties.acks");
        assert!(problem.allowed.contains("always all"));
    }

    #[test]
    fn rules_between_fields_are_checked() {
        for (extra, path) in [
            ("s3: {endpoint: 'localhost:9000'}", "s3.endpoint"),
            ("s3: {endpoint: 'ftp://a'}", "s3.endpoint"),
            ("s3: {endpoint: 'http://user:pw@a'}", "s3.endpoint"),
            ("s3: {access_key_id: a}", "s3.access_key_id"),
            ("s3: {secret_access_key: a}", "s3.secret_access_key"),
            ("s3: {session_token: a}", "s3.session_token"),
            ("s3: {allowed_buckets: ['a/b']}", "s3.allowed_buckets"),
            ("s3: {allowed_buckets: ['photos/public']}", "s3.allowed_buckets"),
            ("s3: {allowed_buckets: ['photos/../']}", "s3.allowed_buckets"),
            ("s3: {backoff_initial_ms: 10, backoff_max_ms: 9}", "s3.backoff_max_ms"),
            ("limits: {max_in_flight: 7}", "limits.max_in_flight"),
            ("limits: {max_buffered_bytes: 67108863}", "limits.max_buffered_bytes"),
            ("runtime: {providers: [cpu, cpu]}", "runtime.providers"),
            ("registry: {url: 'registry:8081'}", "registry.url"),
            ("registry: {format: avro}", "registry.format"),
            ("registry: {url: 'http://r', username: a}", "registry.username"),
            ("registry: {url: 'http://r', password: a}", "registry.password"),
            (
                "registry: {url: 'http://r', username: a, password: b, bearer_token: c}",
                "registry.bearer_token",
            ),
        ] {
            assert_eq!(
                broken_field(&config(&format!(", {extra}"))).as_deref(),
                Some(path),
                "{extra}"
            );
        }
        let right = "s3: {endpoint: 'https://s3.local:9000', access_key_id: a, \
                     secret_access_key: b, allowed_buckets: [photos, albums/public/]}";
        assert_eq!(broken_field(&config(&format!(", {right}"))), None);
        let leak = check(&config(", s3: {endpoint: 'http://user:pw@a'}")).unwrap_err();
        assert!(!leak.value.contains("pw"), "{}", leak.value);
    }

    #[test]
    fn the_group_protocol_is_one_of_two() {
        let kafka = |extra: &str| -> Config {
            let text = format!("{{kafka: {{brokers: 'a:1', {extra}}}, model: {{path: m}}}}");
            serde_yaml_ng::from_str(&text).unwrap()
        };
        assert_eq!(broken_field(&kafka("group_protocol: consumer")), None);
        let wrong = broken_field(&kafka("group_protocol: eager"));
        assert_eq!(wrong.as_deref(), Some("kafka.group_protocol"));
        let session = "properties: {session.timeout.ms: 6000}";
        assert_eq!(broken_field(&kafka(session)), None);
        let both = broken_field(&kafka(&format!("group_protocol: consumer, {session}")));
        assert_eq!(both.as_deref(), Some("kafka.properties.session.timeout.ms"));
    }

    #[test]
    fn model_paths_are_directories_or_s3() {
        for path in ["models/tiny", "/m", "s3://bucket/a", "s3://bucket"] {
            assert!(check_model_path(path).is_ok(), "{path}");
        }
        for path in ["", "  ", "http://a/b", "s3:///x"] {
            assert!(check_model_path(path).is_err(), "{path}");
        }
    }
}
