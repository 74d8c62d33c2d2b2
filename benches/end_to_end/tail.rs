//! A store with a slow tail: one request in a hundred is answered two seconds late. An offset is
//! committed only when everything before it is, so one slow object holds up its partition, and
//! `limits.max_in_flight` is soon used up. Hedged requests (`s3.hedge_after_ms`) are measured
//! against none, and on a store without a tail, where they must cost nothing.
//!
//! A GPU captions thousands of images in the time that a slow object takes, and this machine fewer:
//! with the smaller `limits.max_in_flight` the two are in the ratio that they have on a GPU.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kit::bucket::{Bucket, picture};
use kit::kafka::Cluster;
use kit::process::Configuration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{median, refer};

const ROUNDS: usize = 3;
const REFERENCES: usize = 4000;
const OBJECTS: u32 = 100;
const PARTITIONS: i32 = 4;
const IN_FLIGHT: [usize; 2] = [512, 64];
/// `s3.hedge_after_ms`
const HEDGE_AFTER: [u64; 3] = [0, 200, 500];
const SLOW: Duration = Duration::from_secs(2);
/// One request of so many is slow.
const ONE_IN: u64 = 100;
const SEED: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn measure(cluster: &Cluster) {
    let bucket = Bucket::start();
    let objects: Vec<String> =
        (0..OBJECTS).map(|number| bucket.put(&format!("{number}.png"), &picture(number))).collect();
    let uris: Vec<String> = objects.iter().cycle().take(REFERENCES).cloned().collect();
    for (title, one_in) in [("no slow request", None), ("1 % take 2 s", Some(ONE_IN))] {
        for in_flight in IN_FLIGHT {
            println!("\n{title}, limits.max_in_flight {in_flight}: {REFERENCES} references");
            let mut runs = BTreeMap::<u64, Vec<Run>>::new();
            for _ in 0..ROUNDS {
                for hedge_after in HEDGE_AFTER {
                    let run = run(cluster, &bucket, &uris, one_in, in_flight, hedge_after).await;
                    println!("    {hedge_after} {run:?}");
                    runs.entry(hedge_after).or_default().push(run);
                }
            }
            for (hedge_after, runs) in runs {
                let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
                let (seconds, range) = of(|run| run.seconds);
                let (rate, rates) = of(|run| REFERENCES as f64 / run.seconds);
                let (hedges, _) = of(|run| run.hedges);
                println!(
                    "  s3.hedge_after_ms {hedge_after:3}: {rate:7.1} captions/s ({rates}), last \
                     caption after {seconds:5.1} s ({range}), {hedges} hedges"
                );
            }
        }
    }
}

/// One worker's way through all references.
#[derive(Debug)]
struct Run {
    /// From the first poll that returned a reference to the last committed caption.
    seconds: f64,
    hedges: f64,
    #[allow(dead_code)]
    slow: u64,
}

async fn run(
    cluster: &Cluster,
    bucket: &Bucket,
    uris: &[String],
    one_in: Option<u64>,
    in_flight: usize,
    hedge_after: u64,
) -> Run {
    let topics = cluster.topics(PARTITIONS).await;
    refer(cluster, &topics, PARTITIONS as usize, uris).await;
    let endpoint = bucket.access().endpoint.as_str();
    let (store, slow) = slow_store(endpoint.strip_prefix("http://").unwrap(), one_in).await;
    let mut worker = Configuration::new("tail", cluster, &topics, bucket)
        .with_store(bucket, store)
        .without_repeats()
        .replacing("  max_attempts: 3\n", &format!("  hedge_after_ms: {hedge_after}\n"))
        .replacing("size: 8", "size: 16")
        .replacing("max_in_flight: 128", &format!("max_in_flight: {in_flight}"))
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
        slow: slow.load(Ordering::Relaxed),
    }
}

/// The server behind a proxy that holds one request of `one_in` back, and how often it did.
async fn slow_store(server: &str, one_in: Option<u64>) -> (SocketAddr, Arc<AtomicU64>) {
    let server = server.trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, slow) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&slow);
    let is_slow = move || {
        let mut hash = DefaultHasher::new();
        (SEED, requests.fetch_add(1, Ordering::Relaxed)).hash(&mut hash);
        let is_slow = one_in.is_some_and(|one_in| hash.finish().is_multiple_of(one_in));
        slow.fetch_add(u64::from(is_slow), Ordering::Relaxed);
        is_slow
    };
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if let Ok(server) = TcpStream::connect(&server).await {
                tokio::spawn(carry(client, server, is_slow.clone()));
            }
        }
    });
    (address, count)
}

/// Passes requests and answers on, until either side closes. A client sends its next request when
/// it has the answer to the one before.
async fn carry(client: TcpStream, server: TcpStream, is_slow: impl Fn() -> bool) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
    let requests = async {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let length = from_client.read(&mut piece).await?;
            if length == 0 {
                return std::io::Result::Ok(());
            }
            if piece.starts_with(b"GET ") && is_slow() {
                tokio::time::sleep(SLOW).await;
            }
            to_server.write_all(&piece[..length]).await?;
        }
    };
    // A connection that breaks is the client's to make again.
    let _ = tokio::select! { end = requests => end, end = answers => end };
}
