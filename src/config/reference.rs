//! `docs/configuration.md`, written from the fields themselves; a test compares the two.

use std::fmt::Write;

use serde_json::Value as Json;

use super::field::{Field, SCHEMA};

const HEAD: &str = "\
# Configuration

One YAML file (`--config FILE` or `FUSIONCAP_CONFIG`), below the environment, below flags. A field
that is set in several places has the value of the last of them. `fusioncap config` prints what
came of it, with secrets masked. Unknown fields, wrong types and values out of range end the
process with exit code 2 and one line that names the field, its value, what is allowed and where
it was set.

In the environment a field is `FUSIONCAP_SECTION__FIELD`; a list is written `a,b` or `[a, b]`; an
empty value unsets a field that has no default. A property of librdkafka is
`FUSIONCAP_KAFKA__PROPERTIES__SECURITY_PROTOCOL` for `security.protocol`: `_` stands for a dot,
`__` for an underscore; `FUSIONCAP_KAFKA__PROPERTIES` itself takes a mapping,
`{security.protocol: SSL, client.id: cap}`. A variable that begins with `FUSIONCAP_` and sets
nothing is an error, but for the ones under \"Other variables\", `FUSIONCAP_TEST_*`, and the
addresses that Kubernetes gives a pod for a Service called `fusioncap`.

As a flag every field is `--set FIELD=VALUE`; the common ones have their own (`fusioncap worker
--help`).

This file is written by `fusioncap config --reference`.
";

const TAIL: &str = "
## Other variables

| variable | meaning |
|---|---|
| `FUSIONCAP_CONFIG` | The configuration file, as `--config`. |
| `FUSIONCAP_MODEL_DIR` | Where a model from `s3://` is kept while the worker runs, as `--model-dir`. |
| `FUSIONCAP_PROFILE` | Where the worker writes what each stage does when, in Chrome's trace format, as `--profile`. |
| `FUSIONCAP_LOG` | What is logged, as `tracing-subscriber` filters: `info` (default), `debug`, `fusioncap::worker=debug,warn`. |
| `FUSIONCAP_LOG_FORMAT` | `text` (default on a terminal) or `json` (default elsewhere). |
| `ORT_DYLIB_PATH` | ONNX Runtime's shared library, where `runtime.library` is not set. |
| `OTEL_EXPORTER_OTLP_ENDPOINT` | An OpenTelemetry collector; without it no trace, no metric and no log record is pushed. |
| `OTEL_EXPORTER_OTLP_PROTOCOL` | `grpc` (default) or `http/protobuf`. |
| `OTEL_*` | The other standard names: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_LOGS_EXPORTER`, ... |
";

/// The whole page, in Markdown.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for section in &SCHEMA.sections {
        let prefix = format!("{}.", section.name);
        // Writing to a string can't fail.
        let _ = write!(
            page,
            "\n## `{}`\n\n{}\n\n| field | environment | default | allowed | meaning |\n\
             |---|---|---|---|---|\n",
            section.name, section.description
        );
        for field in SCHEMA.fields.iter().filter(|field| field.path.starts_with(&prefix)) {
            let _ = writeln!(
                page,
                "| `{}` | `{}` | {} | {} | {} |",
                field.path,
                field.variable(),
                default(field),
                cell(&field.allowed()),
                cell(&field.description),
            );
        }
    }
    page.push_str(TAIL);
    page
}

fn default(field: &Field) -> String {
    match &field.default {
        _ if field.required => "required".into(),
        None => "none".into(),
        Some(Json::String(text)) => format!("`{text}`"),
        Some(other) => format!("`{other}`"),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
