//! Exactly once under everything at once: workers killed, ended, frozen, added and taken away,
//! brokers killed and stopped, an object store in trouble, while references come in. A reader that
//! follows live and one that reads at the end must both find every reference answered once, and in
//! order.
//!
//! The short form is a test like others (`make chaos-short`); `make chaos` is the long one, by the
//! variables of `settings`. That a fault hit an open transaction is never assumed: the
//! coordinators' records say so (`world/transactions`).

mod audit;
mod faults;
mod report;
mod schedule;
mod settings;
mod world;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use faults::{FOURTH, FaultInjector};
use kit::bucket::Bucket;
use kit::kafka::{Cluster, Topics};
use kit::process::Configuration;
use report::Report;
use schedule::Fault;
use settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use world::brokers::Brokers;
use world::feed::{self, Feed};
use world::reader::{self, LiveReader};
use world::store::Store;
use world::transactions::Transactions;
use world::workers::Workers;

const NAMES: [&str; 4] = ["one", "two", "three", "four"];
/// Half of the workers are static members of their group (KIP-345).
const STATIC: [&str; 2] = ["one", "three"];
/// Faults in open transactions that the long form has to have.
const HITS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_whatever_happens_takes_minutes() {
    let settings = Settings::from_environment();
    let interrupted = interruption();
    println!("seed {}: FUSIONCAP_TEST_CHAOS_SEED={0} brings the same faults", settings.seed);
    let started = Instant::now();
    let brokers = Brokers::start();
    let cluster = brokers.cluster.clone();
    let topics = cluster.topics(feed::PARTITIONS).await;
    let store = Store::start().await;
    // Its address is never asked; the workers take its keys.
    let keys = Bucket::start();
    let configurations =
        NAMES.map(|name| (name, configuration(name, &settings, &cluster, &topics, &keys, &store)));
    let verified = configurations[0].1.yaml.clone();
    let mut workers = Workers::new(&topics.group, configurations.into(), settings.logs.clone());
    for number in 0..FOURTH {
        workers.start(number);
    }

    let report = tokio::task::block_in_place(|| {
        workers.await_ready();
        let mut live = LiveReader::start(&cluster.bootstrap, &topics);
        let (least, backlog, answered) = (settings.references, settings.backlog, live.answered());
        let feed = Feed::start(&cluster.bootstrap, &topics.input, least, backlog, answered.clone());
        let transactions = Transactions::follow(&cluster.bootstrap);
        let seed = settings.seed;
        let world = (brokers, workers, store, feed, transactions);
        let mut faults = FaultInjector::new(world, answered, seed, interrupted);
        faults.run(&settings);
        faults.await_all_answered();
        faults.workers.await_ready();
        faults.workers.end_all();

        let at_the_end = reader::read_all(&cluster.bootstrap, &topics);
        let verify = verify(&verified);
        live.stop();
        let asked = feed::asked(&cluster.bootstrap, &topics.input);
        assert_eq!(asked.len(), faults.feed.produced(), "what was produced is what was asked");
        let (committed, aborted) = faults.transactions.ended();
        let live = live.audit().judge(&asked);
        Report {
            seed: settings.seed,
            seconds: started.elapsed().as_secs(),
            references: asked.len(),
            tally: faults.tally(),
            transactions_committed: committed,
            transactions_aborted: aborted,
            worker_starts: faults.workers.starts,
            signs: faults.workers.signs,
            exits: faults.workers.exits,
            committed: cluster.committed(&topics.group, &topics.input, feed::PARTITIONS),
            live,
            at_the_end: at_the_end.judge(&asked),
            verify,
        }
    });
    println!("{report}");
    if let Some(path) = &settings.report {
        std::fs::write(path, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    }
    assert_passed(&report, &settings);
}

/// Set by Ctrl-C and SIGTERM. Without this, workers would be left behind, some of them frozen.
fn interruption() -> Arc<AtomicBool> {
    let interrupted = Arc::<AtomicBool>::default();
    let told = Arc::clone(&interrupted);
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        told.store(true, Ordering::Relaxed);
    });
    interrupted
}

fn assert_passed(report: &Report, settings: &Settings) {
    // First, that there was something to survive.
    for fault in Fault::ALL {
        let count = report.tally.faults.get(fault.name()).copied().unwrap_or_default();
        assert!(count.times > 0, "there was no {}", fault.name());
        let harms = matches!(fault, Fault::Store(_));
        assert!(!harms || count.requests > 0, "{} met no request", fault.name());
    }
    let hits = report.tally.in_open_transaction();
    let wanted = if settings.is_long() { HITS } else { 0 };
    assert!(hits > wanted, "only {hits} faults hit open transactions");
    assert!(report.references >= settings.references);

    assert!(report.live.is_clean(), "live: {:?}", report.live);
    assert!(report.at_the_end.is_clean(), "at the end: {:?}", report.at_the_end);
    for verdict in [&report.live, &report.at_the_end] {
        let given_up = verdict.dead_letters.keys().find(|code| code.starts_with("fetch_"));
        assert_eq!(given_up, None, "a passing fault does not cause a dead letter");
    }
    assert_eq!(report.committed, report.references as i64, "offsets are where the outputs are");
    if let Some(verify) = &report.verify {
        assert_eq!(verify["exit"], 0, "{verify}");
    }
}

fn configuration(
    name: &str,
    settings: &Settings,
    cluster: &Cluster,
    topics: &Topics,
    keys: &Bucket,
    store: &Store,
) -> Configuration {
    let real = &keys.access().endpoint;
    let made = Configuration::new(name, cluster, topics, keys)
        .replacing(real, &format!("http://{}", store.address))
        // Trouble lasts for longer than that, and no reference is to be given up for it.
        .replacing("max_attempts: 3", "max_attempts: 5\n  timeout_ms: 2000")
        .replacing("backoff_max_ms: 100", "backoff_max_ms: 1000")
        .replacing("model:\n", "model:\n  num_beams: 1\n")
        .replacing("  size: 8\n", &format!("  size: {}\n", settings.batch))
        .replacing("runtime:\n", "runtime:\n  intra_threads: 1\n  decode_threads: 1\n")
        .replacing("max_in_flight: 128", "max_in_flight: 256");
    if STATIC.contains(&name) {
        let field = format!("  group_instance_id: {name}\n  input_topic:");
        return made.replacing("  input_topic:", &field);
    }
    made
}

/// The report of `fusioncap verify`; None where the binary has no such command.
fn verify(yaml: &str) -> Option<serde_json::Value> {
    let run = |arguments: &[&str]| Command::new(kit::binary()).args(arguments).output().unwrap();
    if !run(&["verify", "--help"]).status.success() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("worker.yaml");
    std::fs::write(&config, yaml).unwrap();
    let output = run(&["verify", "--config", config.to_str().unwrap(), "--json"]);
    let told = serde_json::from_slice::<serde_json::Value>(&output.stdout)
        .unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into_owned().into());
    Some(serde_json::json!({ "exit": output.status.code(), "told": told }))
}
