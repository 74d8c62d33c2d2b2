//! Ends of transactions whose outcome the worker can't know, and other calls that fail half-way:
//! a proxy holds requests on their way to the broker and loses answers on their way back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kit::bucket::Bucket;
use kit::kafka::{Cluster, Topics};
use kit::process::Configuration;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord, Producer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::faults::{PARTITIONS, fill, produce};
use crate::fences::{PATIENCE, assert_settled};
use crate::proxied_cluster;
use crate::proxy::{
    ADD_PARTITIONS_TO_TXN, END_TXN, INIT_PRODUCER_ID, PRODUCE, Planned, Proxy, Request,
    TXN_OFFSET_COMMIT,
};

/// INVALID_PRODUCER_EPOCH and PRODUCER_FENCED.
const FENCED: [i16; 2] = [47, 90];

fn configuration(cluster: &Cluster, topics: &Topics, bucket: &Bucket) -> Configuration {
    Configuration::new("one", cluster, topics, bucket)
        // No transaction may time out while the test holds it.
        .replacing("transaction.timeout.ms: 8000", "transaction.timeout.ms: 60000")
}

fn commits(request: &Request) -> bool {
    request.api == END_TXN && request.commits()
}

fn aborts(request: &Request) -> bool {
    request.api == END_TXN && !request.commits()
}

/// Requests of one kind between two others.
fn between(proxy: &Proxy, api: i16, first: &Request, last: &Request) -> usize {
    let inside = |request: &&Request| (first.number..last.number).contains(&request.number);
    proxy.seen(api).iter().filter(inside).count()
}

fn outputs(cluster: &Cluster, topics: &Topics) -> usize {
    cluster.read_committed(&[&topics.output, &topics.dead_letters]).len()
}

/// An EndTxn is on its way when the connection breaks. The client asks again elsewhere, is told
/// that it is done, and the worker begins the next transaction. Now the first request arrives: it
/// must find another producer, or it would end a transaction that is half written.
///
/// `late` holds that EndTxn; what the broker said to it.
fn arrive_late(cluster: &Cluster, topics: &Topics, proxy: &Proxy, late: &Planned) -> i16 {
    let first = late.caught();
    // The request made again comes first, then the next transaction's.
    let passed = AtomicUsize::new(0);
    let next = proxy
        .hold(move |request| request.api == END_TXN && passed.fetch_add(1, Ordering::Relaxed) == 1);
    late.cut_client();
    let second = next.caught();
    let ends = proxy.seen(END_TXN);
    let again = ends.iter().find(|end| end.number > first.number).unwrap();
    assert_eq!(again.body, first.body, "the same transaction was asked to end twice");
    assert_ne!(again.connection, first.connection);
    assert_eq!(again.error(), 0, "the client was told that it is over");
    assert_eq!(late.caught().answer, None, "the first request is still on its way");
    for api in [ADD_PARTITIONS_TO_TXN, PRODUCE, TXN_OFFSET_COMMIT] {
        assert!(between(proxy, api, again, &second) > 0, "the next transaction is open: {api}");
    }
    let visible = outputs(cluster, topics);
    late.release();
    let error = late.answered().error();
    // Markers are written behind the answer.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(outputs(cluster, topics), visible, "a transaction showed before its own end");
    assert_eq!(next.caught().answer, None, "the next transaction has ended");
    next.release();
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_arrives_late_ends_no_other_transaction() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = configuration(&cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let late = proxy.hold(commits);
    let expected = produce(&cluster, &topics, 0..300).await;
    let error = arrive_late(&cluster, &topics, &proxy, &late);
    assert!(FENCED.contains(&error), "the broker took it: {error}");
    assert_quarantined(&proxy, &late.caught());
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    assert!(!worker.log().contains("\"transaction failed\""), "nothing was repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_arrives_late_ends_no_other_transaction() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = configuration(&cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let late = proxy.hold(aborts);
    let refused = proxy.wrong_generation();
    let expected = produce(&cluster, &topics, 0..300).await;
    refused.answered();
    let error = arrive_late(&cluster, &topics, &proxy, &late);
    assert!(FENCED.contains(&error), "the broker took it: {error}");
    assert_quarantined(&proxy, &late.caught());
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
}

/// Between an end of transaction that broke off and the next transaction's there is a new
/// producer.
fn assert_quarantined(proxy: &Proxy, broken: &Request) {
    let ends = proxy.seen(END_TXN);
    let next = ends.iter().find(|end| end.producer() != broken.producer());
    let next = next.expect("the same producer went on");
    assert!(between(proxy, INIT_PRODUCER_ID, broken, next) > 0);
    let same = ends.iter().filter(|end| end.producer() == broken.producer());
    assert_eq!(same.filter(|end| end.number > next.number).count(), 0, "it came back");
}

/// The error that the two tests above guard against, without our code: librdkafka asks again by
/// itself and hides that it did, and the broker takes the late request for the open
/// transaction's, since it raises the epoch with each transaction (KIP-890) only for clients that
/// take part in that.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_producer_shows_what_it_has_not_committed() {
    let cluster = proxied_cluster();
    let (topics, proxy) = (cluster.topics(1).await, Proxy::before(&cluster));
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", proxy.address.to_string())
        .set("transactional.id", &topics.group)
        .create()
        .unwrap();
    let send = |payload: &'static str| {
        let record = FutureRecord::<str, str>::to(&topics.output).payload(payload).partition(0);
        producer.send(record, PATIENCE)
    };
    let (initialised, committing) = (producer.clone(), producer.clone());
    tokio::task::spawn_blocking(move || initialised.init_transactions(PATIENCE).unwrap())
        .await
        .unwrap();
    producer.begin_transaction().unwrap();
    send("1").await.unwrap();
    let late = proxy.hold(commits);
    let commit = tokio::task::spawn_blocking(move || committing.commit_transaction(PATIENCE));
    late.cut_client();
    commit.await.unwrap().unwrap();
    producer.begin_transaction().unwrap();
    send("2").await.unwrap();
    assert_eq!(cluster.read_values(&topics.output), ["1"]);
    late.release();
    assert_eq!(late.answered().error(), 0, "the broker refused it");
    // Markers are written behind the answer; nobody has committed the second.
    let deadline = Instant::now() + PATIENCE;
    while cluster.read_values(&topics.output) != ["1", "2"] {
        assert!(Instant::now() < deadline, "{:?}", cluster.read_values(&topics.output));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The broker has committed and the worker is not told.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_doubles_nothing() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = configuration(&cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let lost = proxy.lose_answer(commits);
    let expected = produce(&cluster, &topics, 0..300).await;
    assert_lost(&proxy, &lost);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    assert_quarantined(&proxy, &lost.caught());
}

/// The broker has aborted and the worker is not told.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_whose_answer_is_lost_loses_nothing() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = configuration(&cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let lost = proxy.lose_answer(aborts);
    let refused = proxy.wrong_generation();
    let expected = produce(&cluster, &topics, 0..300).await;
    refused.answered();
    assert_lost(&proxy, &lost);
    worker.await_log("\"rewinding\"", 1);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    assert_quarantined(&proxy, &lost.caught());
}

fn assert_lost(proxy: &Proxy, lost: &Planned) {
    let request = lost.answered();
    assert_eq!(request.error(), 0, "the broker did not do it");
    assert!(!request.answered, "the client was told");
    assert!(proxy.counts().1 > 0, "the connection is still there");
}

/// A call that is made again carries the same arguments.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_sent_again_with_the_same_arguments() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = configuration(&cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let lost = proxy.lose_answer(|request| request.api == TXN_OFFSET_COMMIT);
    let expected = produce(&cluster, &topics, 0..300).await;
    assert!(!lost.answered().answered);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    let sent = proxy.seen(TXN_OFFSET_COMMIT);
    let first = sent.iter().position(|sent| sent.number == lost.caught().number).unwrap();
    assert_ne!(sent[first].connection, sent[first + 1].connection);
    assert_eq!(sent[first].body, sent[first + 1].body);
    assert!(!worker.log().contains("\"transaction failed\""), "{}", worker.log());
}

/// The broker gives a transaction up, and the worker goes on with another producer.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_broker_gives_up_is_done_again() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = Configuration::new("one", &cluster, &topics, &bucket)
        .replacing("transaction.timeout.ms: 8000", "transaction.timeout.ms: 3000")
        .replacing("message.timeout.ms: 6000", "message.timeout.ms: 2000")
        .through(proxy.address)
        .start();
    worker.await_ready();
    // The client asks again when the transaction's time is over, before the broker looks.
    let (held, again) = (proxy.hold(commits), proxy.hold(commits));
    let expected = produce(&cluster, &topics, 0..300).await;
    held.caught();
    again.caught();
    // The broker looks every second; it gives a transaction up by raising its producer's epoch.
    std::thread::sleep(Duration::from_secs(5));
    for request in [&held, &again] {
        request.release();
        let error = request.answered().error();
        assert!(FENCED.contains(&error), "the broker has not given it up: {error}");
    }
    worker.await_log("\"transactional producer built\"", 2);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
}

/// The producer is dead before its abort is over: neither the abort nor the next begin hangs.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_behind_a_fatal_error_comes_back() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let mut worker = configuration(&cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let held = proxy.hold(aborts);
    let refused = proxy.wrong_generation();
    let expected = produce(&cluster, &topics, 0..300).await;
    refused.answered();
    held.caught();
    let intruder: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.bootstrap)
        .set("transactional.id", format!("{}-one", topics.group))
        .create()
        .unwrap();
    intruder.init_transactions(PATIENCE).unwrap();
    held.release();
    let error = held.answered().error();
    assert!(FENCED.contains(&error), "the producer was not fenced: {error}");
    worker.await_log("\"the abort failed\"", 1);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
}

/// An address that swallows whatever is sent to it, as a machine that has lost its power does: its
/// queue of connections is full, and nobody takes any.
async fn swallowing() -> (TcpListener, TcpStream) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let queued = TcpStream::connect(address).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await;
    assert!(next.is_err(), "it takes more");
    (listener, queued)
}

/// The group's coordinator is gone when the producer asks for it. librdkafka waits for it longer
/// than it was told to, and may do so for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_come_back_is_left_behind() {
    let (cluster, bucket) = (proxied_cluster(), Bucket::start());
    let (topics, proxy) = (cluster.topics(PARTITIONS).await, Proxy::before(&cluster));
    fill(&bucket);
    let (gone, _queued) = swallowing().await;
    let mut worker =
        Configuration::new("one", &cluster, &topics, &bucket).through(proxy.address).start();
    worker.await_ready();
    let sent_there = proxy.other_coordinator(gone.local_addr().unwrap().port());
    let expected = produce(&cluster, &topics, 0..300).await;
    sent_there.answered();
    worker.await_log("a kafka call did not return", 1);
    worker.await_log("\"transactional producer built\"", 2);
    let both = [topics.output.as_str(), topics.dead_letters.as_str()];
    cluster.await_records(&both, expected.len(), PATIENCE);
    // The old producer gives its connection up after 30 s, and finds itself fenced.
    worker.await_log("an abandoned kafka call returned", 1);
    assert_settled(&cluster, &topics, &expected, &mut [&mut worker]);
    assert_eq!(worker.log().matches("\"transaction failed\"").count(), 1, "{}", worker.log());
}
