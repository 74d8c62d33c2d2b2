//! The command line as a user meets it: the binary's output and exit codes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fusioncap::telemetry::{Health, http};
use kit::{fusioncap, root, stderr, stdout};
use prometheus::{Counter, Registry};
use tempfile::TempDir;

const MINIMAL: &str = "kafka:\n  brokers: localhost:9092\nmodel:\n  path: models/tiny\n";

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new(yaml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("worker.yaml"), yaml).unwrap();
        Self { dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("worker.yaml")
    }

    fn config(&self) -> Command {
        fusioncap(&["config", "--config", text(&self.file())])
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Exit code 2, nothing on stdout, and exactly one line on stderr: the line after `error: `.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert_eq!(stdout(&output), "");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    errors.trim_end().strip_prefix("error: ").unwrap().to_owned()
}

#[test]
fn help_lists_the_subcommands() {
    let output = fusioncap(&["--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for name in ["worker", "caption", "config"] {
        assert!(help.contains(&format!("\n  {name} ")), "{name} is not in\n{help}");
    }
    for name in ["worker", "caption", "config"] {
        let output = fusioncap(&[name, "--help"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}");
        assert!(stdout(&output).contains("Usage: fusioncap"), "{name}");
    }
    let version = stdout(&fusioncap(&["--version"]).output().unwrap());
    assert_eq!(version.trim(), format!("fusioncap {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_2() {
    for arguments in [&["nonsense"][..], &["config", "--nonsense"], &[]] {
        let output = fusioncap(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_command_of_another_build_names_that_build() {
    let help = stdout(&fusioncap(&["--help"]).output().unwrap());
    for name in ["train", "ablate", "encoder", "clip", "variant"] {
        let is_listed = help.contains(&format!("\n  {name} "));
        assert_eq!(is_listed, cfg!(feature = "train"), "{help}");
        if !is_listed {
            let expected = format!(
                "this build does not have `{name}`: build it with `cargo build --release --features \
                 train`"
            );
            assert_eq!(refusal(&mut fusioncap(&[name, "--out", "bundle"])), expected);
            assert_eq!(refusal(&mut fusioncap(&["help", name])), expected);
        }
    }
}

#[test]
fn the_effective_configuration_is_yaml_that_loads_again() {
    let fixture = Fixture::new(MINIMAL);
    let output = fixture.config().output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let first = stdout(&output);
    assert!(first.contains("input_topic: images.in"), "{first}");
    let again = Fixture::new(&first);
    assert_eq!(stdout(&again.config().output().unwrap()), first);
}

#[test]
fn the_configuration_given_in_the_environment_alone() {
    let output = fusioncap(&["config"])
        .env("FUSIONCAP_KAFKA__BROKERS", "a:1")
        .env("FUSIONCAP_MODEL__PATH", "m")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let fixture = Fixture::new(MINIMAL);
    let named = fusioncap(&["config"]).env("FUSIONCAP_CONFIG", fixture.file()).output().unwrap();
    assert!(stdout(&named).contains("path: models/tiny"));
}

#[test]
fn the_environment_beats_the_file_and_flags_beat_both() {
    let fixture = Fixture::new(&format!("{MINIMAL}batch:\n  size: 2\n  linger_ms: 20\n"));
    let output = fixture
        .config()
        .env("FUSIONCAP_BATCH__SIZE", "3")
        .env("FUSIONCAP_BATCH__LINGER_MS", "30")
        .args(["--batch-size", "4", "--set", "kafka.properties.client.id=cap"])
        .output()
        .unwrap();
    let effective = stdout(&output);
    assert!(effective.contains("size: 4"), "{effective}{}", stderr(&output));
    assert!(effective.contains("linger_ms: 30"), "{effective}");
    assert!(effective.contains("client.id: cap"), "{effective}");
    assert!(effective.contains("brokers: localhost:9092"), "{effective}");
}

#[test]
fn secrets_are_masked() {
    let fixture = Fixture::new(&format!(
        "{MINIMAL}s3:\n  access_key_id: visible-id\n  secret_access_key: hunter2-a\n  \
         session_token: hunter2-b\n"
    ));
    let output = fixture
        .config()
        .env("FUSIONCAP_KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2-c")
        .env("FUSIONCAP_KAFKA__PROPERTIES__SASL_USERNAME", "visible-user")
        .output()
        .unwrap();
    let effective = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!effective.contains("hunter2"), "{effective}");
    assert_eq!(effective.matches("******").count(), 3, "{effective}");
    assert!(effective.contains("visible-id") && effective.contains("visible-user"), "{effective}");
}

#[test]
fn a_refused_secret_is_not_repeated() {
    let fixture = Fixture::new(&format!("{MINIMAL}s3:\n  secret_access_key: [hunter2]\n"));
    let line = refusal(&mut fixture.config());
    assert!(line.starts_with("s3.secret_access_key can't be ******"), "{line}");
}

#[test]
fn an_unknown_field_is_named_with_its_line() {
    let fixture = Fixture::new("kafka:\n  brokers: a:1\n  input_topics: x\n");
    let line = refusal(&mut fixture.config());
    let file = text(&fixture.file()).to_owned();
    assert_eq!(
        line,
        format!(
            "there is no field kafka.input_topics (did you mean: kafka.input_topic, \
             set by: {file}:3)"
        )
    );
}

#[test]
fn a_wrong_type_says_what_is_allowed() {
    let fixture = Fixture::new(&format!("{MINIMAL}batch:\n  size: many\n"));
    let line = refusal(&mut fixture.config());
    assert!(
        line.starts_with("batch.size can't be 'many' (allowed: an integer from 1 to 1024, set by"),
        "{line}"
    );
}

#[test]
fn a_value_out_of_range_says_the_range() {
    let fixture = Fixture::new(MINIMAL);
    let line = refusal(fixture.config().args(["--batch-size", "0"]));
    assert_eq!(
        line,
        "batch.size can't be 0 (allowed: an integer from 1 to 1024, set by: --batch-size)"
    );
}

#[test]
fn a_bad_variable_is_named() {
    let fixture = Fixture::new(MINIMAL);
    let wrong_value = refusal(fixture.config().env("FUSIONCAP_S3__CONCURRENCY", "0"));
    assert!(wrong_value.ends_with("set by: FUSIONCAP_S3__CONCURRENCY)"), "{wrong_value}");
    let wrong_name = refusal(fixture.config().env("FUSIONCAP_S3_CONCURRENCY", "1"));
    assert!(wrong_name.contains("did you mean: FUSIONCAP_S3__CONCURRENCY"), "{wrong_name}");
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let missing = refusal(&mut fusioncap(&["config", "--config", "no/such.yaml"]));
    assert!(
        missing.starts_with("can't read the configuration file (path: no/such.yaml): No such"),
        "{missing}"
    );
    let broken = Fixture::new("kafka: [\n");
    let line = refusal(&mut broken.config());
    assert!(line.starts_with("the configuration file is not valid YAML"), "{line}");
    assert!(line.contains("line "), "{line}");
}

#[test]
fn a_missing_required_field_is_named() {
    let fixture = Fixture::new("model:\n  path: m\n");
    let line = refusal(&mut fixture.config());
    assert!(line.starts_with("kafka.brokers is required but not set"), "{line}");
}

#[test]
fn a_property_that_exactly_once_rests_on_is_refused() {
    let fixture = Fixture::new(MINIMAL);
    let line =
        refusal(fixture.config().env("FUSIONCAP_KAFKA__PROPERTIES__ENABLE_AUTO_COMMIT", "true"));
    assert!(line.starts_with("kafka.properties.enable.auto.commit can't be 'true'"), "{line}");
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let script = format!("{} config --reference | head -n 1", kit::binary().display());
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "# Configuration\n");
}

#[test]
fn the_reference_in_the_repository_is_current() {
    let output = fusioncap(&["config", "--reference"]).output().unwrap();
    let page = root("docs/configuration.md");
    assert!(
        std::fs::read_to_string(page).unwrap() == stdout(&output),
        "docs/configuration.md is old: `fusioncap config --reference > docs/configuration.md`"
    );
}

#[test]
fn a_plan_needs_nothing_but_its_arguments() {
    let output = fusioncap(&["plan", "--day", "1e9", "--image-size", "2MB"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("11,574 images/s"), "{text}");
    assert!(text.contains("come from other machines than yours"), "{text}");

    let output = fusioncap(&["plan", "--rate", "20000", "--json"]).output().unwrap();
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(plan["s3"]["prefixes"], 4);
    assert_eq!(plan["pod"]["bottleneck"], "the cores");

    let error = refusal(&mut fusioncap(&["plan", "--rate", "5", "--image-size", "2XB"]));
    assert!(error.contains("--image-size can't be '2XB' (allowed: a size from"), "{error}");
}

#[test]
fn the_plan_in_the_documentation_is_current() {
    let page = root("docs/sizing.md");
    let text = std::fs::read_to_string(page).unwrap();
    let (_, block) = text.split_once("\n$ fusioncap ").unwrap();
    let (line, rest) = block.split_once('\n').unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let output = fusioncap(&arguments).output().unwrap();
    assert_eq!(stdout(&output), shown, "docs/sizing.md is old: `fusioncap {line}`");
}

/// Each row of the GPU tables of docs/performance.md: the arguments of `plan`, and the measured images
/// per second of the engine alone.
fn measured_engines() -> Vec<(Vec<String>, f64)> {
    let page = root("docs/performance.md");
    let text = std::fs::read_to_string(page).unwrap();
    let (_, section) = text.split_once("\n## On a GPU\n").unwrap();
    let (mut batches, mut model) = (Vec::new(), "");
    let mut engines = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (name, rest) = (cells[0], &cells[1..]);
        let figures: Vec<(&str, &str)> = match name {
            "batch" => {
                batches = rest.to_vec();
                continue;
            }
            // The second table has the batch and the engine alone in its columns.
            "" => {
                batches.clear();
                continue;
            }
            _ if batches.is_empty() => vec![(rest[0], rest[1])],
            _ => batches.iter().copied().zip(rest.iter().copied()).collect(),
        };
        model = match name {
            _ if name.starts_with("models/tiny") => "tiny",
            _ if name.starts_with("ViT-B/32") => "vit-b-32",
            _ => model,
        };
        let gpu = match name {
            _ if name.contains("no GPU") => "none",
            _ if name.contains("H200") => "h200",
            _ => "h100",
        };
        let precision = if name.contains("16 bits") { "fp16" } else { "fp32" };
        for (batch, rate) in figures.into_iter().filter(|(_, rate)| !rate.is_empty()) {
            let arguments =
                ["--gpu", gpu, "--model", model, "--precision", precision, "--batch", batch];
            let arguments = arguments.map(str::to_owned).to_vec();
            engines.push((arguments, rate.replace(',', "").parse().unwrap()));
        }
    }
    engines
}

#[test]
fn a_plan_knows_the_engines_that_were_measured() {
    let engines = measured_engines();
    assert!(engines.len() > 20, "the tables were not read: {engines:?}");
    for (arguments, measured) in engines {
        let output =
            fusioncap(&["plan", "--rate", "1", "--json"]).args(&arguments).output().unwrap();
        let plan: serde_json::Value = serde_json::from_str(&stdout(&output))
            .unwrap_or_else(|_| panic!("{arguments:?}: {}", stderr(&output)));
        let stages = plan["pod"]["stages"].as_array().unwrap();
        let engine = stages.iter().find(|stage| stage["name"] == "the engine").unwrap();
        assert_eq!(engine["source"], "measured", "{arguments:?}");
        let planned = engine["images_per_second"].as_f64().unwrap();
        let off = planned / measured - 1.0;
        assert!(off.abs() <= 0.25, "{arguments:?}: {planned} is off {measured} by {off:.2}");
    }
}

/// A worker's port, as the worker itself serves it.
struct Port {
    runtime: tokio::runtime::Runtime,
    health: Arc<Health>,
    registry: Registry,
}

impl Port {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self { runtime, health: Arc::new(Health::default()), registry: Registry::new() }
    }

    fn serve(&self, listen: &str) -> http::Server {
        let (health, registry) = (Arc::clone(&self.health), self.registry.clone());
        let serve = http::serve(listen.parse().unwrap(), health, registry);
        self.runtime.block_on(serve).unwrap()
    }
}

#[test]
fn the_health_check_of_a_worker_that_listens_everywhere() {
    let port = Port::new();
    let server = port.serve("0.0.0.0:0");
    let listen = server.address().to_string();
    let healthcheck = |flags: &[&str]| {
        fusioncap(&["healthcheck"]).args(flags).env("FUSIONCAP_HTTP__LISTEN", &listen).output()
    };
    let output = healthcheck(&[]).unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "live\n"));

    port.health.set_not_ready("no broker");
    let output = healthcheck(&["--ready"]).unwrap();
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let at = format!("127.0.0.1:{}", server.address().port());
    let told = format!(
        "error: the worker answers with an error (url: http://{at}/readyz, status: 503, answer: \
         not ready: no broker)\n"
    );
    assert_eq!(errors, told);

    port.health.set_failed();
    assert_eq!(healthcheck(&[]).unwrap().status.code(), Some(1));
}

#[test]
fn the_health_check_reads_the_workers_own_file() {
    let port = Port::new();
    // Some containers have the one family only.
    let loopback = ["[::1]:0", "127.0.0.1:0"];
    let bound = loopback.into_iter().find(|address| std::net::TcpListener::bind(address).is_ok());
    let server = port.serve(bound.expect("a loopback address"));
    let fixture = Fixture::new(&format!("http:\n  listen: '{}'\n", server.address()));
    let output = fusioncap(&["healthcheck", "--config", text(&fixture.file())]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let wrong = refusal(&mut fusioncap(&["healthcheck", "--listen", "here"]));
    assert!(wrong.starts_with("http.listen can't be 'here'"), "{wrong}");
}

#[test]
fn the_health_check_of_a_worker_elsewhere_waits_and_reads_metrics() {
    let port = Port::new();
    let server = port.serve("127.0.0.1:0");
    let address: SocketAddr = server.address();
    let named = format!("localhost:{}", address.port());
    let ask = ["healthcheck", "--address", &named, "--ready", "--metrics", "--wait", "20"];
    let waiting = fusioncap(&ask).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    port.health.set_ready(true);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("the metrics are not those of a worker"),
        "{}",
        stderr(&output)
    );

    let counter = Counter::new("fusioncap_captions_total", "captions").unwrap();
    port.registry.register(Box::new(counter)).unwrap();
    assert_eq!(fusioncap(&ask).output().unwrap().status.code(), Some(0));
}

#[test]
fn the_health_check_of_nothing_says_where_it_looked() {
    let port = Port::new();
    let server = port.serve("127.0.0.1:0");
    let listen = server.address().to_string();
    port.runtime.block_on(server.shutdown());
    let output = fusioncap(&["healthcheck", "--listen", &listen]).output().unwrap();
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let first = format!("error: the worker does not answer (url: http://{listen}/livez)");
    assert_eq!(errors.lines().next(), Some(first.as_str()));
    assert!(errors.contains("caused by: Connection refused"), "{errors}");
}
