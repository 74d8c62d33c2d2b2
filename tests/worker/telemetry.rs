//! The worker's telemetry, as a real OpenTelemetry Collector gets it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use kit::bucket::{self, Bucket};
use kit::kafka::{Record, Topics};
use kit::process::Configuration;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::{Value, json};

use crate::collector::{Collector, Span, attribute};
use crate::shared_cluster;

const PATIENCE: Duration = Duration::from_secs(60);

/// `traceparent`s, by a digit that their ids are made of.
fn parent(digit: char, flags: &str) -> String {
    let hex = |length| digit.to_string().repeat(length);
    format!("00-{}-{}-{flags}", hex(32), hex(16))
}

fn carrying(traceparent: Option<&str>) -> OwnedHeaders {
    let headers = OwnedHeaders::new();
    match traceparent {
        Some(value) => headers.insert(Header { key: "traceparent", value: Some(value) }),
        None => headers,
    }
}

fn request(id: &str, uri: &str) -> Vec<u8> {
    json!({"id": id, "uri": uri}).to_string().into_bytes()
}

/// The results of one run.
struct Ran {
    topics: Topics,
    records: BTreeMap<String, Record>,
    log: String,
    /// As `/metrics` had it at the end.
    metrics: String,
    /// From SIGTERM to the process's end.
    ending: Duration,
}

/// Runs a worker over `messages`, each a payload and a `traceparent`, until `answers` are there.
async fn run(
    name: &str,
    messages: &[(Vec<u8>, Option<String>)],
    answers: usize,
    configure: impl Fn(Configuration) -> Configuration,
    bucket: &Bucket,
) -> Ran {
    let cluster = shared_cluster();
    let topics = cluster.topics(1).await;
    for (payload, traceparent) in messages {
        let headers = carrying(traceparent.as_deref());
        cluster.produce(&topics.input, 0, "key", payload, headers).await;
    }
    let configuration = Configuration::new(name, &cluster, &topics, bucket);
    let mut worker = configure(configuration).start();
    let both = [topics.output.as_str(), &topics.dead_letters];
    let records = cluster.await_records(&both, answers, PATIENCE);
    let metrics = worker.get("/metrics").unwrap();
    let told = Instant::now();
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    let ending = told.elapsed();
    let by_id = records.into_iter().map(|record| (record.text("id").to_owned(), record));
    Ran { topics, records: by_id.collect(), log: worker.log(), metrics, ending }
}

/// The lines of a worker's log that say `message`.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let parsed = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["message"] == message).collect()
}

/// Trace and span that a record carries, and its flags.
fn carried(record: &Record) -> (String, String, String) {
    let parts: Vec<&str> = record.header("traceparent").split('-').collect();
    (parts[1].to_owned(), parts[2].to_owned(), parts[3].to_owned())
}

/// Every label of every series is known, and so are its values: none comes from outside.
fn assert_labels_are_bounded(metrics: &str) {
    let codes = fusioncap::ErrorKind::DEAD_LETTERS.map(|kind| kind.code());
    let known: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("code", &codes[..]),
        ("outcome", &["committed", "aborted", "unknown"]),
        ("stage", &["consume", "fetch", "decode", "batch", "encode", "caption", "publish"]),
        ("waiting_for", &["upstream", "downstream"]),
        ("deadline", &["transaction", "session", "max_poll_interval", "termination"]),
    ]);
    let body = metrics.split_once("\r\n\r\n").unwrap().1;
    // `target_info` is what the environment says about this worker; of models there is one in use.
    let others = ["# ", "target_info{", "fusioncap_model_info{"];
    let is_series = |line: &&str| !others.iter().any(|other| line.starts_with(other));
    let series = body.lines().filter(is_series);
    let mut seen = BTreeSet::new();
    for line in series {
        let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        for label in labels.map_or("", |(labels, _)| labels).split(',').filter(|l| !l.is_empty()) {
            let (name, value) = label.split_once('=').unwrap();
            let value = value.trim_matches('"');
            seen.insert(name);
            let is_bound = name == "le" && (value == "+Inf" || value.parse::<f64>().is_ok());
            let is_known = known.get(name).is_some_and(|values| values.contains(&value));
            assert!(is_bound || is_known, "{line}");
        }
    }
    assert!(seen.len() == known.len() + 1, "{seen:?}");
}

/// One trace as an indented list.
fn tree(spans: &[&Span], parent: &str, depth: usize) -> String {
    let mut text = String::new();
    let mut children: Vec<&&Span> = spans.iter().filter(|span| span.parent == parent).collect();
    children.sort_by_key(|span| (span.start, span.end));
    for span in children {
        let millis = (span.end - span.start) as f64 / 1e6;
        let name = format!("{}{}", "  ".repeat(depth), span.name);
        text += &format!("{name:<60}{millis:>9.3} ms\n{}", tree(spans, &span.id, depth + 1));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caption_has_a_trace_from_its_request_on() {
    let bucket = Bucket::start();
    let mut collector = Collector::start();
    let (one, two) =
        (bucket.put("1.png", &bucket::picture(1)), bucket.put("2.png", &bucket::picture(2)));
    let nothing = json!({"Records": [{"eventName": "ObjectRemoved:Delete",
        "s3": {"bucket": {"name": "photos"}, "object": {"key": "1.png"}}}]});
    let messages = [
        (request("one", &one), Some(parent('1', "01"))),
        (request("two", &two), None),
        (request("unsampled", &bucket.put("3.png", &bucket::picture(3))), Some(parent('3', "00"))),
        (request("again", &one), Some(parent('4', "01"))),
        (request("missing", &bucket::uri("no.png")), Some(parent('5', "01"))),
        (request("torn", &bucket.put("6.jpg", &bucket::truncated_jpeg())), Some(parent('6', "01"))),
        (nothing.to_string().into_bytes(), Some(parent('7', "01"))),
    ];
    let endpoint = collector.grpc();
    let configure = |configuration: Configuration| {
        configuration.with_variable("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
    };
    let Ran { topics, records, log, metrics, .. } =
        run("traced", &messages, 6, configure, &bucket).await;
    collector.stop();
    let spans = collector.spans();
    let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let process = format!("process {}", topics.input);
    let of = |trace: &str| spans.iter().filter(|span| span.trace == trace).collect::<Vec<_>>();
    let find = |trace: &str, name: &str| {
        let found: Vec<_> = of(trace).into_iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} of {trace} in {names:?}");
        found[0].clone()
    };

    // One reference, from its producer's span to its caption's.
    let (trace, _, _) = carried(&records["one"]);
    assert_eq!(trace, "1".repeat(32));
    let root = find(&trace, &process);
    println!("{}", tree(&of(&trace), &"1".repeat(16), 0));
    assert_eq!((root.parent.as_str(), root.kind, root.status), ("1".repeat(16).as_str(), 5, 0));
    for (key, value) in [
        ("messaging.system", "kafka"),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", &topics.input),
        ("messaging.destination.partition.id", "0"),
        ("messaging.kafka.offset", "0"),
        ("messaging.kafka.message.key", "key"),
        ("messaging.consumer.group.name", &topics.group),
        ("fusioncap.reference.id", "one"),
        ("fusioncap.outcome", "captioned"),
    ] {
        assert_eq!(root.attribute(key), value, "{key}");
    }
    let stages = [
        "queue",
        "fetch",
        "decode wait",
        "decode",
        "batch wait",
        "inference",
        "commit wait",
        "commit",
    ];
    let mut since = root.start;
    for name in stages {
        let stage = find(&trace, name);
        assert_eq!((&stage.parent, stage.start), (&root.id, since), "{name} has a gap before it");
        assert!(stage.end >= stage.start, "{name}");
        since = stage.end;
    }
    assert_eq!(since, root.end);
    let fetch = find(&trace, "fetch");
    assert_eq!(
        (fetch.attribute("aws.s3.bucket"), fetch.attribute("aws.s3.key")),
        ("photos".into(), "1.png".into())
    );
    let send = find(&trace, &format!("send {}", topics.output));
    let commit = find(&trace, "commit");
    assert_eq!((send.kind, &send.parent), (4, &commit.id));
    assert!(send.start >= commit.start && send.end <= commit.end);
    assert_eq!(carried(&records["one"]), (trace.clone(), send.id, "01".into()));

    // One without a producer's context begins a trace.
    let (own, sent, _) = carried(&records["two"]);
    assert_eq!(find(&own, &process).parent, "");
    assert_eq!(find(&own, &format!("send {}", topics.output)).id, sent);

    // One that is not sampled leaves none, and its context goes on as it came.
    assert_eq!(records["unsampled"].header("traceparent"), parent('3', "00"));
    assert!(of(&"3".repeat(32)).is_empty());

    // A repeat is linked to who worked for it.
    let again = "4".repeat(32);
    assert_eq!(find(&again, "coalesce wait").links, vec![root.id.clone()]);
    assert_eq!(find(&again, &process).attribute("fusioncap.outcome"), "captioned");

    // Dead letters.
    for (id, digit, stage, code) in
        [("missing", "5", "fetch", "object_not_found"), ("torn", "6", "decode", "corrupt_image")]
    {
        let trace = digit.repeat(32);
        let (root, failed) = (find(&trace, &process), find(&trace, stage));
        assert_eq!((root.status, failed.status), (2, 2), "{id}");
        assert_eq!(root.attribute("error.type"), code);
        assert_eq!(failed.attribute("error.type"), code);
        assert_eq!(root.attribute("fusioncap.outcome"), "dead_letter");
        let send = find(&trace, &format!("send {}", topics.dead_letters));
        assert_eq!(carried(&records[id]).1, send.id);
        let line = lines(&log, "dead letter committed");
        let line = line.iter().find(|line| line["code"] == code).unwrap_or_else(|| panic!("{log}"));
        assert_eq!((&line["trace_id"], &line["span_id"]), (&trace.into(), &send.id.into()));
    }
    assert_eq!(find(&"7".repeat(32), &process).attribute("fusioncap.outcome"), "skipped");

    // Batches are linked to each of their references.
    let linked = |name: &str| -> BTreeSet<String> {
        let batches: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert!(!batches.is_empty() && batches.iter().all(|span| span.parent.is_empty()), "{name}");
        batches.iter().flat_map(|span| span.links.clone()).collect()
    };
    let roots: BTreeMap<&str, String> = ["1", "4", "5", "6"]
        .map(|digit| (digit, find(&digit.repeat(32), &process).id))
        .into_iter()
        .collect();
    let two = find(&own, &process).id;
    assert_eq!(linked("inference batch"), BTreeSet::from([roots["1"].clone(), two.clone()]));
    let committed: BTreeSet<String> = roots.values().cloned().chain([two.clone()]).collect();
    assert_eq!(linked(&format!("commit {}", topics.input)), committed);
    let parents = ["1", "4", "5", "6", "7"].map(|digit| digit.repeat(16));
    let polled: BTreeSet<String> = parents.into_iter().chain([two]).collect();
    assert_eq!(linked(&format!("poll {}", topics.input)), polled);

    assert_labels_are_bounded(&metrics);

    // The other signals.
    let metrics = collector.metrics();
    for name in [
        "fusioncap_captions",
        "messaging.client.consumed.messages",
        "messaging.client.sent.messages",
        "messaging.client.operation.duration",
        "messaging.process.duration",
    ] {
        assert!(metrics.iter().any(|known| known == name), "{name} in {metrics:?}");
    }
    let logs = collector.logs();
    let said = |record: &&Value| record["body"]["stringValue"] == "dead letter committed";
    let traces: BTreeSet<&str> =
        logs.iter().filter(said).map(|record| record["traceId"].as_str().unwrap()).collect();
    assert_eq!(traces, BTreeSet::from(["5".repeat(32).as_str(), "6".repeat(32).as_str()]));
    let record = logs.iter().find(said).unwrap();
    assert_eq!(attribute(&record["attributes"], "offset"), "4");
    for (signal, resources) in
        [("traces", "resourceSpans"), ("metrics", "resourceMetrics"), ("logs", "resourceLogs")]
    {
        let services = collector.services(signal, resources);
        assert!(!services.is_empty() && services.iter().all(|name| name == "fusioncap"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_variables_choose_protocol_sampler_and_signals() {
    let bucket = Bucket::start();
    let mut collector = Collector::start();
    let messages = [
        (request("chosen", &bucket.put("1.png", &bucket::picture(1))), Some(parent('1', "01"))),
        (request("free", &bucket.put("2.png", &bucket::picture(2))), None),
    ];
    let endpoint = collector.http();
    let configure = |configuration: Configuration| {
        configuration
            .with_variable("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .with_variable("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .with_variable("OTEL_TRACES_SAMPLER", "parentbased_always_off")
            .with_variable("OTEL_LOGS_EXPORTER", "none")
            .with_variable("OTEL_SERVICE_NAME", "captions")
    };
    let Ran { topics, records, .. } = run("chosen", &messages, 2, configure, &bucket).await;
    collector.stop();
    let traces: BTreeSet<String> = collector.spans().into_iter().map(|span| span.trace).collect();
    assert_eq!(traces, BTreeSet::from(["1".repeat(32)]), "no root is sampled, batches neither");
    let spans = collector.spans();
    let send = spans.iter().find(|span| span.name == format!("send {}", topics.output)).unwrap();
    assert_eq!(carried(&records["chosen"]).1, send.id);
    assert_eq!(carried(&records["free"]).2, "00");
    assert!(!collector.metrics().is_empty() && collector.logs().is_empty());
    let services = collector.services("traces", "resourceSpans");
    assert!(!services.is_empty() && services.iter().all(|name| name == "captions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_context_is_passed_on_and_logged() {
    let bucket = Bucket::start();
    let messages = [
        (request("one", &bucket.put("1.png", &bucket::picture(1))), Some(parent('1', "01"))),
        (request("missing", &bucket::uri("no.png")), Some(parent('2', "01"))),
    ];
    let Ran { records, log, .. } = run("plain", &messages, 2, |plain| plain, &bucket).await;
    assert_eq!(records["one"].header("traceparent"), parent('1', "01"));
    assert_eq!(records["missing"].header("traceparent"), parent('2', "01"));
    let said = lines(&log, "dead letter committed");
    assert_eq!(said.len(), 1, "{log}");
    assert_eq!(said[0]["trace_id"], "2".repeat(32));
    let committed = lines(&log, "transaction committed");
    assert!(!committed.is_empty() && committed.iter().all(|line| line["trace_id"].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_holds_nothing_up() {
    let bucket = Bucket::start();
    // The system accepts connections to it, and no one reads them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let messages = [(request("one", &bucket.put("1.png", &bucket::picture(1))), None)];
    let configure = |configuration: Configuration| {
        configuration.with_variable("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
    };
    let Ran { records, ending, .. } = run("silent", &messages, 1, configure, &bucket).await;
    assert_eq!(carried(&records["one"]).2, "01");
    assert!(ending < Duration::from_secs(14), "{ending:?} from SIGTERM to the end");
}
