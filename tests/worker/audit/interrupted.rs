//! A redrive that is killed, and one that another overtakes: each letter is put back once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fusioncap::message::{Marker, header};
use kit::kafka::{Cluster, Topics};
use serde_json::{Value, json};

use super::redrive::{dead_letter, write};
use crate::command::{Running, Subcommand};
use crate::proxy::{END_TXN, INIT_PRODUCER_ID, Proxy, Request};
use crate::shared_cluster;
use crate::topic::{self, Writer, record};

const LETTERS: usize = 2_000;
const PARTITIONS: i32 = 2;
/// Letters a transaction: few, so that there are many transactions to come between.
const ARGUMENTS: [&str; 3] = ["--all", "--batch", "10"];

fn write_letters(cluster: &Cluster, topics: &Topics) {
    let writer = Writer::new(cluster);
    for number in 0..LETTERS {
        let original =
            record(&json!({"uri": format!("s3://photos/{number}.png")}).to_string(), &[]);
        let at = (number as i32 % PARTITIONS, number as i64 / i64::from(PARTITIONS));
        write(&writer, topics, &dead_letter(topics, at, &original));
    }
    writer.flush();
}

/// Stops a run, by a signal, once it has put something back; how many letters it has marked then.
fn interrupt(run: &mut Running, signal: &str, cluster: &Cluster, topics: &Topics) -> usize {
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.stored(&topics.input, PARTITIONS) < 100 {
        assert!(run.is_running(), "it ended before it was at work: {:?}", run.wait());
        assert!(Instant::now() < deadline, "it was never at work");
    }
    run.signal(signal);
    if signal == "KILL" {
        assert_eq!(run.wait().0, None, "it ended by itself");
    }
    // Stored records may lie behind an open transaction: only a frozen or dead run is counted.
    let stored = cluster.stored(&topics.dead_letters, 1);
    assert!(stored > LETTERS as i64, "nothing was marked");
    let marked = topic::read(cluster, &topics.dead_letters)
        .iter()
        .filter(|raw| Marker::is_marker(&raw.record.headers))
        .count();
    assert!((1..LETTERS).contains(&marked), "{marked} were marked: not midway");
    println!("interrupted by SIG{signal} with {marked} of {LETTERS} letters marked");
    marked
}

/// Each letter is marked once and its reference is there once.
fn assert_each_once(cluster: &Cluster, topics: &Topics) {
    let letters = topic::read(cluster, &topics.dead_letters);
    let marked: Vec<_> =
        letters.iter().filter_map(|raw| Marker::marked_letter(&raw.record.headers)).collect();
    let places: BTreeSet<String> = marked.iter().map(ToString::to_string).collect();
    assert_eq!((marked.len(), places.len()), (LETTERS, LETTERS));
    let input = topic::read(cluster, &topics.input);
    let from: BTreeSet<String> =
        input.iter().filter_map(|raw| raw.header(header::REDRIVEN_FROM)).map(Into::into).collect();
    assert_eq!(input.len(), LETTERS);
    assert_eq!(from, places);
    let payloads: BTreeSet<_> = input.iter().map(|raw| &raw.record.payload).collect();
    assert_eq!(payloads.len(), LETTERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redrive_is_run_again_and_puts_each_back_once() {
    let cluster = shared_cluster();
    let topics = cluster.topics(PARTITIONS).await;
    write_letters(&cluster, &topics);
    let redrive = Subcommand::new("redrive", &cluster, &topics);
    let mut killed = redrive.start(&ARGUMENTS);
    interrupt(&mut killed, "KILL", &cluster, &topics);
    let (code, summary) = redrive.json(&["--all"]);
    assert_eq!(code, 0, "{summary}");
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert!(number("already_redriven") > 0, "{summary}");
    assert_eq!(number("already_redriven") + number("redriven"), LETTERS as u64);
    assert_each_once(&cluster, &topics);
}

/// The broker dies under a run, which goes on when it is back, or fails and is run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_under_a_redrive_doubles_nothing_takes_minutes() {
    let cluster = Cluster::start(1);
    if !cluster.is_ours() {
        return;
    }
    let topics = cluster.topics(PARTITIONS).await;
    write_letters(&cluster, &topics);
    let redrive = Subcommand::new("redrive", &cluster, &topics);
    let mut run = redrive.start(&ARGUMENTS);
    interrupt(&mut run, "STOP", &cluster, &topics);
    run.signal("CONT");
    cluster.broker("kill", 1);
    assert!(!cluster.is_listening(1), "the broker is still there");
    assert!(run.is_running(), "it ended before the broker died: {:?}", run.wait());
    cluster.broker("start", 1);
    let (code, _, errors) = run.wait();
    println!("after the broker's death the run ended with {code:?}: {errors}");
    assert!(code == Some(0) || errors.contains("error: "), "{errors}");
    let (code, summary) = redrive.json(&["--all"]);
    assert_eq!(code, 0, "{summary}");
    assert!(summary["already_redriven"].as_u64().unwrap() > 0, "{summary}");
    assert_each_once(&cluster, &topics);
}

/// A commit's connection breaks: librdkafka asks again elsewhere, and says that all went well.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_whose_commit_loses_its_answer_goes_on_with_another_producer() {
    let cluster = shared_cluster();
    if !cluster.is_ours() {
        return;
    }
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    write_letters(&cluster, &topics);
    let lost = proxy.lose_answer(|request| request.api == END_TXN && request.commits());
    let redrive = Subcommand::of("redrive", &proxy.address.to_string(), &topics);
    let (code, summary) = redrive.json(&ARGUMENTS);
    assert_eq!(code, 0, "{summary}");
    assert_eq!(summary["redriven"], LETTERS, "{summary}");
    assert_each_once(&cluster, &topics);

    let lost = lost.answered();
    assert!(!lost.answered && lost.error() == 0, "the broker has committed and nobody was told");
    let ends = proxy.seen(END_TXN);
    let (same, later): (Vec<&Request>, Vec<&Request>) =
        ends.iter().partition(|end| end.producer() == lost.producer());
    assert!(same.iter().all(|end| end.body == lost.body), "the producer went on");
    let first = later.first().expect("nothing came after it").number;
    let between = |request: &Request| (lost.number..first).contains(&request.number);
    assert!(proxy.seen(INIT_PRODUCER_ID).iter().any(between), "there is no new producer");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_redrives_at_once_the_older_is_fenced_and_says_so() {
    let cluster = shared_cluster();
    let topics = cluster.topics(PARTITIONS).await;
    write_letters(&cluster, &topics);
    let redrive = Subcommand::new("redrive", &cluster, &topics);
    let mut older = redrive.start(&ARGUMENTS);
    interrupt(&mut older, "STOP", &cluster, &topics);
    let mut newer = redrive.start(&["--all", "--json"]);
    let (code, out, errors) = newer.wait();
    assert_eq!(code, Some(0), "{errors}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert!(summary["already_redriven"].as_u64().unwrap() > 0, "{summary}");
    older.signal("CONT");
    let (code, _, errors) = older.wait();
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("another redrive of this group has taken over"), "{errors}");
    assert!(errors.contains(&format!("{}-redrive", topics.group)), "{errors}");
    assert_each_once(&cluster, &topics);
}
