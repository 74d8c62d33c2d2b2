//! The worker as a process, against a real Kafka and a real S3 server.

mod access;
mod ambiguous;
mod backlog;
mod bucket;
mod collector;
mod compressed;
mod distance;
mod faults;
mod fences;
mod fetching;
mod flow;
mod kafka;
#[path = "../many_scans/mod.rs"]
mod many_scans;
mod members;
#[path = "../object_store/mod.rs"]
mod object_store;
mod oddities;
mod outages;
mod process;
mod proxy;
mod refusals;
mod repeats;
mod retries;
mod rollout;
mod secure;
mod telemetry;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use kafka::{Cluster, Record};

/// What must become of one reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Caption,
    DeadLetter(&'static str),
}

/// One broker that all tests which don't harm it share, while any of them runs.
pub fn shared_cluster() -> Arc<Cluster> {
    static SHARED: LazyLock<Mutex<Weak<Cluster>>> = LazyLock::new(Mutex::default);
    let mut shared = SHARED.lock();
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(Cluster::start(1));
    *shared = Arc::downgrade(&cluster);
    cluster
}

/// The shared broker, or one of our own where a running one is named: no proxy stands before that.
pub fn proxied_cluster() -> Arc<Cluster> {
    let shared = shared_cluster();
    if shared.is_ours() { shared } else { Arc::new(Cluster::start_own(1, 4, &[])) }
}

/// Every expected source offset is answered once and as expected, and nothing else is there.
pub fn assert_exactly_once(records: &[Record], expected: &HashMap<(i32, i64), Expected>) {
    let mut answers: HashMap<(i32, i64), Vec<Expected>> = HashMap::new();
    for record in records {
        let answer = match record.value.get("code").and_then(|code| code.as_str()) {
            None => Expected::Caption,
            Some(code) => {
                let known = fusioncap::ErrorKind::DEAD_LETTERS.map(|kind| kind.code());
                let name = known.iter().find(|name| **name == code);
                Expected::DeadLetter(name.unwrap_or_else(|| panic!("unknown code {code}")))
            }
        };
        answers.entry(record.source()).or_default().push(answer);
    }
    let mut wrong: Vec<String> = Vec::new();
    for (source, right) in expected {
        match answers.remove(source).as_deref() {
            None => wrong.push(format!("{source:?} is missing")),
            Some([answer]) if answer == right => {}
            Some([answer]) => wrong.push(format!("{source:?} is {answer:?}, not {right:?}")),
            Some(many) => wrong.push(format!("{source:?} is answered {} times", many.len())),
        }
    }
    wrong.extend(answers.keys().map(|source| format!("{source:?} was never asked")));
    assert!(
        wrong.is_empty(),
        "{} wrong of {}: {:?}",
        wrong.len(),
        expected.len(),
        &wrong[..wrong.len().min(20)]
    );
}
