//! Workers and their names: the same transactional id twice, the same place in the group twice, and
//! a place that is kept through hard work.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use kit::bucket::{Bucket, picture, uri};
use kit::kafka::deliver;
use kit::process::Configuration;
use rdkafka::message::OwnedHeaders;
use serde_json::json;

use crate::distance::distant;
use crate::faults::{PARTITIONS, fill, produce};
use crate::fences::{PATIENCE, assert_settled, await_shares, await_work};
use crate::proxy::{Proxy, TXN_OFFSET_COMMIT, offset_error};
use crate::{Expected, proxied_cluster, shared_cluster};

/// FENCED_INSTANCE_ID.
const FENCED_INSTANCE: i16 = 82;

/// They fence each other until one has had enough, which says why; the other works on.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_with_one_transactional_id_one_ends() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let [mut first, mut second] =
        [(); 2].map(|()| Configuration::new("same", &cluster, &topics, &bucket).start());
    let mut expected = produce(&cluster, &topics, 0..1_000).await;
    let deadline = Instant::now() + PATIENCE;
    let mut round = 0;
    while first.is_running() && second.is_running() {
        assert!(Instant::now() < deadline, "both go on:\n{}", first.log());
        let numbers = 1_000 + round * 100..1_100 + round * 100;
        expected.extend(produce(&cluster, &topics, numbers).await);
        round += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (ended, left) =
        if first.is_running() { (&mut second, &mut first) } else { (&mut first, &mut second) };
    assert_eq!(ended.wait(PATIENCE).code(), Some(1), "{}", ended.log());
    let log = ended.log();
    let told = log.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(told.contains("another running worker has the same transactional id"), "{told}");
    assert!(told.contains("kafka.transactional_id"), "{told}");
    assert!(told.contains(&format!("{}-same", topics.group)), "{told}");
    assert_settled(&cluster, &topics, &expected, &mut [left]);
}

/// A second worker takes the first one's place in the group while the first has a transaction
/// under way: the broker refuses that, and the first one ends and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_place_was_taken_commits_nothing_more() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut first = Configuration::new("one", &cluster, &topics, &bucket)
        .with_instance("slot")
        .through(proxy.address)
        .start();
    first.await_ready();
    let held = proxy.hold(|request| request.api == TXN_OFFSET_COMMIT);
    let expected = produce(&cluster, &topics, 0..300).await;
    held.caught();
    let mut second =
        Configuration::new("two", &cluster, &topics, &bucket).with_instance("slot").start();
    second.await_log("\"partitions assigned\"", 1);
    held.release();
    assert_eq!(offset_error(&held.answered()), FENCED_INSTANCE, "the broker took it");
    assert_eq!(first.wait(PATIENCE).code(), Some(1), "{}", first.log());
    let log = first.log();
    let told = log.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(told.contains("kafka.group_instance_id") && told.contains("slot"), "{log}");
    assert_settled(&cluster, &topics, &expected, &mut [&mut second]);
}

/// A static member that was killed gets its partitions back without a rebalance.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_takes_its_own_place_again() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let one = Configuration::new("one", &cluster, &topics, &bucket).with_instance("slot-1");
    let two = Configuration::new("two", &cluster, &topics, &bucket).with_instance("slot-2");
    // The successor has to be there before the session ends.
    let [one, two] = [distant(one, &bucket).await, two]
        .map(|worker| worker.replacing("session.timeout.ms: 9000", "session.timeout.ms: 45000"));
    let (mut first, mut second) = (one.start(), two.start());
    await_shares(&[&first, &second]).await;
    let mut expected = produce(&cluster, &topics, 0..400).await;
    await_work(&mut first);
    first.kill();
    let changes = second.log().matches("\"partitions assigned\"").count();
    let mut first = one.start();
    first.await_ready();
    expected.extend(produce(&cluster, &topics, 400..600).await);
    assert_settled(&cluster, &topics, &expected, &mut [&mut first, &mut second]);
    let log = second.log();
    assert_eq!(log.matches("\"partitions assigned\"").count(), changes, "{log}");
}

/// The brokers share the partitions out (KIP-848), while workers join, are killed and come back.
#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_may_share_the_partitions_out() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(PARTITIONS).await;
    fill(&bucket);
    let configure = async |name: &str| {
        let configuration = Configuration::new(name, &cluster, &topics, &bucket)
            .replacing("    session.timeout.ms: 9000\n", "")
            .replacing("  input_topic: ", "  group_protocol: consumer\n  input_topic: ");
        distant(configuration, &bucket).await
    };
    let (one, two) = (configure("one").await, configure("two").await);
    let mut first = one.start();
    first.await_ready();
    let mut expected = produce(&cluster, &topics, 0..400).await;
    await_work(&mut first);
    let mut second = two.start();
    await_shares(&[&first, &second]).await;
    expected.extend(produce(&cluster, &topics, 400..900).await);
    await_work(&mut second);
    let revoked = || second.log().matches("\"partitions revoked\"").count();
    let before = revoked();
    first.kill();
    expected.extend(produce(&cluster, &topics, 900..1_200).await);
    let mut first = one.start();
    await_shares(&[&first, &second]).await;
    assert!(revoked() > before, "there was no rebalance:\n{}", second.log());
    expected.extend(produce(&cluster, &topics, 1_200..1_500).await);
    assert_settled(&cluster, &topics, &expected, &mut [&mut first, &mut second]);
}

/// Images come so slowly that the partitions are paused for longer than `max.poll.interval.ms`.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_busy_for_long_keeps_its_place() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(2).await;
    let (producer, mut expected) = (cluster.producer(), HashMap::new());
    let payload = json!({"uri": uri("slow.png")}).to_string();
    for number in 0..40 {
        let (partition, bytes) = (number % 2, payload.as_bytes());
        let headers = OwnedHeaders::new();
        let offset = deliver(&producer, &topics.input, partition, "k", bytes, headers).await;
        expected.insert((partition, offset), Expected::Caption);
    }
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .with_store(&bucket, slow_store().await)
        .replacing("  max_attempts: 3\n", "  max_attempts: 3\n  concurrency: 1\n")
        .replacing("max_in_flight: 128", "max_in_flight: 20")
        .without_coalescing()
        .replacing("session.timeout.ms: 9000", "session.timeout.ms: 6000")
        .with_property("max.poll.interval.ms", "6000")
        .with_property("heartbeat.interval.ms", "1000")
        .with_debug_log()
        .start();
    worker.await_ready();
    worker.await_log("\"paused\"", 1);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    let log = worker.log();
    assert_eq!(log.matches("\"partitions assigned\"").count(), 1, "{log}");
    // It gives them back when it ends.
    assert_eq!(log.matches("\"partitions revoked\"").count(), 1, "{log}");
    let pauses = pauses(&log);
    let longest = pauses.iter().max().unwrap();
    assert!(*longest > Duration::from_secs(6), "never busy for longer than a poll may take");
}

/// How long each pause lasted; each ends with a resumption of exactly what was paused.
fn pauses(log: &str) -> Vec<Duration> {
    let (mut paused, mut since, mut pauses) = (BTreeSet::new(), None, Vec::new());
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let time: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
        let partitions = || -> BTreeSet<i32> {
            let text = line["partitions"].as_str().unwrap().trim_matches(['[', ']', '{', '}']);
            text.split(", ").map(|number| number.parse().unwrap()).collect()
        };
        match line["message"].as_str() {
            Some("paused") => {
                since.get_or_insert(time);
                for partition in partitions() {
                    assert!(paused.insert(partition), "{partition} was paused already");
                }
            }
            Some("resumed") => {
                assert_eq!(partitions(), paused, "resumed what was not paused");
                paused.clear();
                let length = time.duration_since(since.take().unwrap());
                pauses.push(Duration::try_from(length).unwrap());
            }
            _ => {}
        }
    }
    pauses
}

/// An object store that thinks for a second.
async fn slow_store() -> SocketAddr {
    let answer = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        picture(1)
    };
    let router = Router::new().route("/photos/{key}", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}
