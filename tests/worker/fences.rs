//! Exactly once when a worker is taken for dead, pushed aside, outnumbered, or refused by the
//! broker: the paths on which transactions abort and partitions are rewound.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kit::bucket::Bucket;
use kit::kafka::{Cluster, Topics};
use kit::process::{Configuration, Worker};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};

use crate::distance::distant;
use crate::faults::{PARTITIONS, fill, produce};
use crate::{Expected, assert_exactly_once, shared_cluster};

pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `worker` holds references which it has not committed.
pub fn await_work(worker: &mut Worker) {
    let deadline = Instant::now() + PATIENCE;
    while worker.metric("fusioncap_in_flight_references") < 16.0 {
        assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
        assert!(Instant::now() < deadline, "never at work:\n{}", worker.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the workers share the partitions out, as many to each.
pub async fn await_shares(workers: &[&Worker]) {
    let share = f64::from(PARTITIONS) / workers.len() as f64;
    let deadline = Instant::now() + PATIENCE;
    while workers.iter().any(|worker| worker.metric("fusioncap_partitions_assigned") != share) {
        assert!(Instant::now() < deadline, "they don't share the topic");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Everything is answered once, committed, and stays so when the workers have stopped.
pub fn assert_settled(
    cluster: &Cluster,
    topics: &Topics,
    expected: &HashMap<(i32, i64), Expected>,
    workers: &mut [&mut Worker],
) {
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, expected.len(), PATIENCE);
    assert_exactly_once(&records, expected);
    for worker in workers {
        worker.signal("TERM");
        assert!(worker.wait(Duration::from_secs(30)).success(), "{}", worker.log());
    }
    let committed = cluster.committed(&topics.group, &topics.input, PARTITIONS);
    assert_eq!(committed, expected.len() as i64, "offsets are where the outputs are");
    assert_exactly_once(&cluster.read_committed(&both), expected);
}

/// A worker frozen for longer than its session loses its partitions to another, and comes back
/// with work in hand that is no longer its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_taken_for_dead_doubles_nothing() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let one = Configuration::new("one", &cluster, &topics, &bucket);
    let mut frozen = distant(one, &bucket).await.start();
    let mut other = Configuration::new("two", &cluster, &topics, &bucket).start();
    await_shares(&[&frozen, &other]).await;
    let mut expected = produce(&cluster, &topics, 0..1_200).await;
    await_work(&mut frozen);
    let assigned = frozen.log().matches("\"partitions assigned\"").count();
    frozen.signal("STOP");
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    let records = cluster.await_records(&both, expected.len(), PATIENCE);
    assert_exactly_once(&records, &expected);

    frozen.signal("CONT");
    expected.extend(produce(&cluster, &topics, 1_200..1_600).await);
    frozen.await_log("\"partitions assigned\"", assigned + 1);
    assert_settled(&cluster, &topics, &expected, &mut [&mut frozen, &mut other]);
}

/// Somebody else's producer with the same transactional id fences a worker at work, three times.
#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_producer_is_replaced() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let one = Configuration::new("one", &cluster, &topics, &bucket);
    let mut worker = distant(one, &bucket).await.start();
    worker.await_ready();
    let mut expected = HashMap::new();
    for round in 0..3 {
        expected.extend(produce(&cluster, &topics, round * 400..(round + 1) * 400).await);
        await_work(&mut worker);
        let intruder: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &cluster.bootstrap)
            .set("transactional.id", format!("{}-one", topics.group))
            .create()
            .unwrap();
        intruder.init_transactions(PATIENCE).unwrap();
        worker.await_log("\"transactional producer built\"", round + 2);
    }
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
}

/// Workers join and leave a busy group.
#[tokio::test(flavor = "multi_thread")]
async fn workers_come_and_go() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let start = async |name: &str| {
        let configuration = Configuration::new(name, &cluster, &topics, &bucket);
        distant(configuration, &bucket).await.start()
    };
    let mut first = start("one").await;
    first.await_ready();
    let mut expected = produce(&cluster, &topics, 0..500).await;
    await_work(&mut first);
    let mut second = start("two").await;
    await_shares(&[&first, &second]).await;
    expected.extend(produce(&cluster, &topics, 500..1_000).await);
    await_work(&mut second);
    let mut third = start("three").await;
    await_shares(&[&first, &second, &third]).await;
    expected.extend(produce(&cluster, &topics, 1_000..1_500).await);
    await_work(&mut first);
    first.signal("TERM");
    assert!(first.wait(Duration::from_secs(30)).success(), "{}", first.log());
    expected.extend(produce(&cluster, &topics, 1_500..2_000).await);
    await_work(&mut third);
    third.signal("TERM");
    assert!(third.wait(Duration::from_secs(30)).success(), "{}", third.log());
    assert_settled(&cluster, &topics, &expected, &mut [&mut second]);
    // A commit that meets a rebalance is refused, and done again by the owner.
    let failures = [&first, &second, &third].map(|worker| {
        let log = worker.log();
        let failed: Vec<String> = log
            .lines()
            .filter(|line| line.contains("\"transaction failed\""))
            .map(str::to_owned)
            .collect();
        for line in &failed {
            assert!(line.contains("generation") || line.contains("lost"), "{line}");
        }
        (failed.len(), log.matches("\"partitions assigned\"").count())
    });
    let within = |(failed, rounds): &(usize, usize)| *failed <= rounds + 1;
    assert!(failures.iter().all(within), "one a round at most: {failures:?}");
}
