//! A store with a slow tail: one request in a hundred takes two seconds longer than the others.
//! Hedged reads (`s3.hedging`) against single requests, from a store nearby and from one whose
//! every response takes 300 ms, and from both without slow requests, where hedging must cost
//! nothing.
//!
//! A partition's offset is committed when everything before it is finished, so one slow read holds
//! up its partition until `limits.max_in_flight` references wait. The smallest bundle captions
//! small images at the rate at which a GPU runs a real model: seven times the default limit in the
//! two seconds of a slow read.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kit::bucket::{Bucket, picture};
use kit::kafka::Cluster;
use kit::process::Configuration;
use kit::table;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{median, refer};

const ROUNDS: usize = 5;
const REFERENCES: usize = 4000;
const OBJECTS: u32 = 100;
const PARTITIONS: i32 = 4;
const IN_FLIGHT: usize = 512;
const NEAR_CONCURRENCY: usize = 32;
const SLOW: Duration = Duration::from_secs(2);
/// One request of this many is slow.
const ONE_IN: u64 = 100;
/// The time to a response from the store that is far away, and the requests that it takes.
const DISTANCE: Duration = Duration::from_millis(300);
const FAR_CONCURRENCY: usize = 512;
const PATIENCE: Duration = Duration::from_secs(300);

/// The slow requests and the hedging of one run.
const CASES: [(&str, bool, bool); 4] = [
    ("no slow requests, single", false, false),
    ("no slow requests, hedged", false, true),
    ("1 % take 2 s, single", true, false),
    ("1 % take 2 s, hedged", true, true),
];

pub async fn measure(cluster: &Cluster) {
    let bucket = Bucket::start();
    let objects: Vec<String> =
        (0..OBJECTS).map(|number| bucket.put(&format!("{number}.png"), &picture(number))).collect();
    let uris: Vec<String> = objects.iter().cycle().take(REFERENCES).cloned().collect();
    let mut rows = Vec::new();
    for (store, distance, concurrency) in
        [("nearby", Duration::ZERO, NEAR_CONCURRENCY), ("300 ms away", DISTANCE, FAR_CONCURRENCY)]
    {
        println!(
            "\na store {store}: {REFERENCES} references, limits.max_in_flight {IN_FLIGHT}, \
             s3.concurrency {concurrency}, {ROUNDS} rounds"
        );
        let mut runs: [Vec<Run>; 4] = Default::default();
        for round in 0..ROUNDS {
            for ((_, has_tail, hedging), runs) in CASES.into_iter().zip(&mut runs) {
                let address = bucket.access().endpoint.trim_start_matches("http://");
                let store = Store::start(address, distance, has_tail, round as u64).await;
                runs.push(run(cluster, &bucket, &uris, &store, hedging, concurrency).await);
            }
        }
        let mut rates = [0.0; 4];
        for (((name, ..), runs), rate) in CASES.iter().zip(&runs).zip(&mut rates) {
            *rate = report(name, runs);
        }
        let [single, hedged, slow_single, slow_hedged] = rates;
        rows.push((format!("{store}, no slow requests: hedged / single"), hedged / single, 0.9));
        rows.push((
            format!("{store}, 1 % take 2 s: hedged / single"),
            slow_hedged / slow_single,
            2.0,
        ));
    }
    table::head("hedged reads");
    for (name, ratio, goal) in rows {
        table::row(&name, ratio, Some(goal));
    }
}

/// One worker's way through all references.
struct Run {
    /// From the first poll that returned a reference to the last committed caption.
    seconds: f64,
    hedges: f64,
    slow: u64,
}

/// Prints the medians of one case, and returns its captions per second.
fn report(name: &str, runs: &[Run]) -> f64 {
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let (rate, rates) = of(|run| REFERENCES as f64 / run.seconds);
    let (seconds, range) = of(|run| run.seconds);
    let (hedges, _) = of(|run| run.hedges);
    let (slow, _) = of(|run| run.slow as f64);
    println!(
        "  {name:24} {rate:7.1} captions/s ({rates}), the last after {seconds:4.1} s ({range}); \
         {slow:.0} slow, {hedges:.0} hedges"
    );
    rate
}

async fn run(
    cluster: &Cluster,
    bucket: &Bucket,
    uris: &[String],
    store: &Store,
    hedging: bool,
    concurrency: usize,
) -> Run {
    let topics = cluster.topics(PARTITIONS).await;
    refer(cluster, &topics, PARTITIONS as usize, uris).await;
    let s3 = format!("s3:\n  hedging: {hedging}\n  concurrency: {concurrency}\n");
    let mut worker = Configuration::new("tail", cluster, &topics, bucket)
        .with_store(bucket, store.address)
        .without_coalescing()
        .replacing("s3:\n", &s3)
        .replacing("size: 8", "size: 16")
        .replacing("max_in_flight: 128", &format!("max_in_flight: {IN_FLIGHT}"))
        .start();
    let mut reach = |name: &str, count: usize| {
        let deadline = Instant::now() + PATIENCE;
        while worker.metric(name) < count as f64 {
            assert!(worker.is_running(), "the worker ended:\n{}", worker.log());
            assert!(Instant::now() < deadline, "too slow:\n{}", worker.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Instant::now()
    };
    let began = reach("fusioncap_messages_total", 1);
    let ended = reach("fusioncap_captions_total", uris.len());
    Run {
        seconds: (ended - began).as_secs_f64(),
        hedges: worker.metric("fusioncap_fetch_hedges_total"),
        slow: store.requests.slow.load(Ordering::Relaxed),
    }
}

/// The S3 server behind a proxy that delays requests.
struct Store {
    address: SocketAddr,
    requests: Arc<Requests>,
}

/// Which requests the proxy delays, and for how long.
struct Requests {
    distance: Duration,
    has_tail: bool,
    /// Chooses the slow requests, by their number.
    seed: u64,
    number: AtomicU64,
    slow: AtomicU64,
}

impl Store {
    async fn start(server: &str, distance: Duration, has_tail: bool, seed: u64) -> Self {
        let server = server.trim_end_matches('/').to_owned();
        let (number, slow) = Default::default();
        let requests = Arc::new(Requests { distance, has_tail, seed, number, slow });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let delays = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(&server).await {
                    tokio::spawn(forward(client, server, Arc::clone(&delays)));
                }
            }
        });
        Self { address, requests }
    }
}

impl Requests {
    /// How long the next request waits before it is forwarded.
    fn delay(&self) -> Duration {
        let mut hash = DefaultHasher::new();
        (self.seed, self.number.fetch_add(1, Ordering::Relaxed)).hash(&mut hash);
        if !self.has_tail || !hash.finish().is_multiple_of(ONE_IN) {
            return self.distance;
        }
        self.slow.fetch_add(1, Ordering::Relaxed);
        self.distance + SLOW
    }
}

/// Forwards requests and responses until either side closes. The client does not send a request
/// before it has the response to the previous one.
async fn forward(client: TcpStream, server: TcpStream, delays: Arc<Requests>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let responses = async { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
    let requests = async {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let length = from_client.read(&mut piece).await?;
            if length == 0 {
                return std::io::Result::Ok(());
            }
            if piece.starts_with(b"GET ") {
                tokio::time::sleep(delays.delay()).await;
            }
            to_server.write_all(&piece[..length]).await?;
        }
    };
    // The client opens another connection when one breaks.
    let _ = tokio::select! { end = requests => end, end = responses => end };
}
