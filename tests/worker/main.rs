//! The worker, and the commands that read its topics, as processes: on a real Kafka, a real S3
//! server, a real schema registry and a real OpenTelemetry Collector.

mod access;
mod ambiguous;
mod audit;
mod backlog;
mod collector;
mod command;
mod compressed;
mod distance;
mod faults;
mod fences;
mod fetching;
mod flow;
mod members;
mod operator_changes;
mod outages;
mod proxy;
mod refusals;
mod refused_records;
mod registry;
mod repeats;
mod retries;
mod rollout;
mod secure;
mod start_offsets;
mod telemetry;
mod topic;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use kit::kafka::{Cluster, Record};
use parking_lot::Mutex;

/// The expected answer to one reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Caption,
    DeadLetter(&'static str),
}

/// A part of the surroundings that tests share: started for the first of them, and dropped by the
/// last that uses it.
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Shared<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    pub fn get(&self, start: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock();
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(start());
            *shared = Arc::downgrade(&started);
            started
        })
    }
}

/// One broker for all tests that do not harm it.
pub fn shared_cluster() -> Arc<Cluster> {
    static SHARED: Shared<Cluster> = Shared::new();
    SHARED.get(|| Cluster::start(1))
}

/// The shared broker, or a new one if `FUSIONCAP_TEST_KAFKA` names a running one, which has no
/// entries for proxies.
pub fn proxied_cluster() -> Arc<Cluster> {
    let shared = shared_cluster();
    if shared.is_ours() { shared } else { Arc::new(Cluster::start_own(1, 4, &[])) }
}

/// Asserts that each expected source offset has one answer, the expected one, and that there is no
/// other answer.
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
    wrong.extend(answers.keys().map(|source| format!("{source:?} is unexpected")));
    assert!(
        wrong.is_empty(),
        "{} wrong of {}: {:?}",
        wrong.len(),
        expected.len(),
        &wrong[..wrong.len().min(20)]
    );
}
