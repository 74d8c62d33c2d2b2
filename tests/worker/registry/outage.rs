//! A registry that is away is waited for.

use std::collections::HashSet;
use std::time::Duration;

use kit::bucket::{Bucket, picture, uri};
use serde_json::json;

use super::server::{Server, framed};
use super::{PATIENCE, ask_partition, await_raw, configuration};
use crate::{shared_cluster, topic};

/// Longer than the session of the test's workers.
const OUTAGE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_a_registry_that_is_away() {
    let (cluster, bucket, server) = (shared_cluster(), Bucket::start(), Server::start());
    let topics = cluster.topics(2).await;
    bucket.put("0.png", &picture(0));
    let schema =
        |title: &str| json!({"type": "object", "title": title, "properties": {}}).to_string();
    let known = server.register("known", "JSON", &schema("known")).await;
    let late = server.register("late", "JSON", &schema("late")).await;
    let request = |id: &str| json!({"uri": uri("0.png"), "id": id}).to_string().into_bytes();
    let fields = "  format: json-schema\n";
    let mut worker = configuration(&cluster, &topics, &bucket, &server.url, fields).start();
    ask_partition(&cluster, &topics, 0, &[framed(known, &request("before"))]);
    await_raw(&cluster, &topics.output, 1);

    server.run("kill");
    assert!(!server.answers().await, "the registry is dead");
    // Known schemas continue. A message with an unknown one waits, and so do those behind it.
    ask_partition(&cluster, &topics, 0, &[framed(known, &request("known"))]);
    await_raw(&cluster, &topics.output, 2);
    ask_partition(
        &cluster,
        &topics,
        0,
        &[framed(late, &request("late")), request("plain"), framed(known, &request("behind"))],
    );
    worker.await_log("requests wait for the schema registry", 1);
    ask_partition(&cluster, &topics, 1, &[framed(late, &request("elsewhere"))]);
    tokio::time::sleep(OUTAGE).await;
    assert!(worker.is_running(), "{}", worker.log());
    assert!(!server.answers().await, "the registry is still dead");
    // Messages on the other partition were not polled any more.
    let awaiting = worker.metric("fusioncap_awaiting_schema_messages");
    assert!((1.0..=3.0).contains(&awaiting), "{awaiting}");
    assert_eq!(worker.metric("fusioncap_partitions_paused"), 1.0);
    assert_eq!(topic::read(&cluster, &topics.output).len(), 2);
    assert_eq!(topic::read(&cluster, &topics.dead_letters).len(), 0);
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), 2);
    assert!(!worker.log().contains("\"partitions revoked\""), "{}", worker.log());

    server.run("start");
    let captions = await_raw(&cluster, &topics.output, 6);
    assert_eq!(worker.metric("fusioncap_awaiting_schema_messages"), 0.0);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    let ids: Vec<String> = captions
        .iter()
        .map(|raw| {
            let json = &raw.record.payload.as_deref().unwrap()[5..];
            let caption: serde_json::Value = serde_json::from_slice(json).unwrap();
            caption["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let once: HashSet<&str> = ids.iter().map(String::as_str).collect();
    let wanted = ["before", "known", "late", "plain", "behind", "elsewhere"];
    assert_eq!(once, HashSet::from(wanted));
    assert_eq!(ids.len(), wanted.len(), "each once: {ids:?}");
    assert_eq!(topic::read(&cluster, &topics.dead_letters).len(), 0);
    assert_eq!(cluster.committed(&topics.group, &topics.input, 2), 6);
}

/// A worker that ends while it waits leaves what waits to its successor.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_left_to_a_successor() {
    let (cluster, bucket, server) = (shared_cluster(), Bucket::start(), Server::start());
    let topics = cluster.topics(1).await;
    bucket.put("0.png", &picture(0));
    let late = server.register("late", "JSON", r#"{"type": "object", "properties": {}}"#).await;
    let request = json!({"uri": uri("0.png")}).to_string().into_bytes();
    // Plain captions: nothing is asked at the start.
    let configuration = configuration(&cluster, &topics, &bucket, &server.url, "");
    let mut first = configuration.start();
    first.await_ready();
    server.run("kill");
    assert!(!server.answers().await, "the registry is dead");
    ask_partition(&cluster, &topics, 0, &[framed(late, &request)]);
    first.await_log("requests wait for the schema registry", 1);
    first.signal("TERM");
    assert!(first.wait(PATIENCE).success(), "{}", first.log());
    assert_eq!(cluster.committed(&topics.group, &topics.input, 1), 0);
    server.run("start");
    let mut second = configuration.start();
    await_raw(&cluster, &topics.output, 1);
    second.signal("TERM");
    assert!(second.wait(PATIENCE).success(), "{}", second.log());
    assert_eq!(topic::read(&cluster, &topics.output).len(), 1);
    assert_eq!(cluster.committed(&topics.group, &topics.input, 1), 1);
}
