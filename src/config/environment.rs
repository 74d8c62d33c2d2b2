//! Environment variables: which field a name sets, and which names with the prefix `FUSIONCAP_`
//! are not fields.

use super::field::{Field, SCHEMA, ValueType, nearest};
use crate::error::{Error, ErrorKind};

/// Variables with the prefix that are not fields: flags and log settings.
const RESERVED: [&str; 4] =
    ["FUSIONCAP_CONFIG", "FUSIONCAP_MODEL_DIR", "FUSIONCAP_LOG", "FUSIONCAP_LOG_FORMAT"];
const TEST_PREFIX: &str = "FUSIONCAP_TEST_";

/// The error for a variable that sets no field.
pub fn unknown_variable(name: &str) -> Error {
    let variables: Vec<String> = SCHEMA.fields.iter().map(Field::variable).collect();
    let error =
        Error::new(ErrorKind::Config, format!("the environment variable {name} sets no field"));
    match nearest(name, variables.iter().map(String::as_str)) {
        Some(variable) => error.with_context("did you mean", variable),
        None => error
            .with_context("allowed", "names such as FUSIONCAP_KAFKA__BROKERS for kafka.brokers"),
    }
}

/// The path that a variable sets. In a map's key `_` stands for a dot and `__` for `_`:
/// `FUSIONCAP_KAFKA__PROPERTIES__SECURITY_PROTOCOL` is `security.protocol`.
pub fn field_path(variable: &str) -> Option<String> {
    for field in &SCHEMA.fields {
        let own = field.variable();
        if variable == own {
            return Some(field.path.clone());
        }
        let key = variable.strip_prefix(&own).and_then(|rest| rest.strip_prefix("__"));
        if let (ValueType::Map, Some(name)) =
            (&field.value_type, key.filter(|name| !name.is_empty()))
        {
            let words: Vec<String> =
                name.to_lowercase().split("__").map(|word| word.replace('_', ".")).collect();
            return Some(format!("{}.{}", field.path, words.join("_")));
        }
    }
    None
}

/// Whether a variable with the prefix is known not to set a field.
///
/// Kubernetes sets variables for every Service of the pod's namespace: `FUSIONCAP_SERVICE_HOST`,
/// `FUSIONCAP_PORT_8080_TCP` and so on for a Service `fusioncap`. None of them contains the `__` of
/// a field.
pub fn is_reserved(variable: &str) -> bool {
    if RESERVED.contains(&variable) || variable.starts_with(TEST_PREFIX) {
        return true;
    }
    let is_service_link = variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || variable.ends_with("_PORT")
        || variable
            .split_once("_PORT_")
            .is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()));
    is_service_link && !variable.contains("__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_map_to_paths() {
        for (variable, path) in [
            ("FUSIONCAP_KAFKA__GROUP_INSTANCE_ID", Some("kafka.group_instance_id")),
            ("FUSIONCAP_KAFKA__PROPERTIES", Some("kafka.properties")),
            ("FUSIONCAP_KAFKA__PROPERTIES__CLIENT_ID", Some("kafka.properties.client.id")),
            ("FUSIONCAP_KAFKA__PROPERTIES__A__B_C", Some("kafka.properties.a_b.c")),
            ("FUSIONCAP_KAFKA__PROPERTIES__", None),
            ("FUSIONCAP_KAFKA", None),
            ("FUSIONCAP_kafka__brokers", None),
        ] {
            assert_eq!(field_path(variable).as_deref(), path, "{variable}");
        }
    }

    #[test]
    fn service_links_are_not_fields() {
        for variable in [
            "FUSIONCAP_SERVICE_HOST",
            "FUSIONCAP_SERVICE_PORT_HTTP",
            "FUSIONCAP_PORT",
            "FUSIONCAP_METRICS_PORT_8080_TCP_ADDR",
            "FUSIONCAP_TEST_KAFKA",
            "FUSIONCAP_LOG",
            "FUSIONCAP_MODEL_DIR",
        ] {
            assert!(is_reserved(variable), "{variable}");
        }
        for variable in ["FUSIONCAP_HTTP_LISTEN", "FUSIONCAP_HTTP__PORT", "FUSIONCAP_PORT_X"] {
            assert!(!is_reserved(variable), "{variable}");
        }
    }
}
