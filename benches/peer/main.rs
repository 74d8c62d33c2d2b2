//! The worker against the Python script that one would write instead (`worker.py` beside this
//! file): the same Kafka broker, S3 server, bundle and photos, one after the other in each round.
//!
//! `make bench-peer`. Arguments: `small` or `large` for one set of photos, `draft` for a second
//! script that lets libjpeg shrink while it decodes, `quick` for a few photos, to see it run.
//! `BENCH_PYTHON` names a Python that has `requirements.txt` installed.

mod contender;
mod photos;

use contender::Contender;
use kit::bucket::Bucket;
use kit::kafka::Cluster;
use kit::table;

/// The batch size of both.
const BATCH: usize = 32;

/// One kind of photo, how many of them a round has, and how many rounds.
struct Set {
    name: &'static str,
    size: [u32; 2],
    count: usize,
    rounds: usize,
    goal: f64,
}

/// Counts are multiples of the batch: no batch waits to fill. They are large enough that a round's
/// beginning and end, where something waits, count for little: a stream has neither.
const SETS: [Set; 2] = [
    Set { name: "small photos", size: [500, 375], count: 40 * BATCH, rounds: 3, goal: 1.5 },
    Set {
        name: "12-megapixel photos",
        size: [4000, 3000],
        count: 12 * BATCH,
        rounds: 3,
        goal: 4.0,
    },
];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` comes without the flag, there is nothing to test;
    // and `make bench` without the name.
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    if !(given("--bench") && given("peer")) {
        return;
    }
    let wanted = |set: &Set| {
        let word = set.name.split(' ').next().filter(|word| *word == "small").unwrap_or("large");
        given(word) || !(given("small") || given("large"))
    };

    let cluster = Cluster::start(1);
    let bucket = Bucket::start();
    let mut contenders = vec![
        Contender::ours(&cluster, &bucket).await,
        Contender::script(&cluster, &bucket, &[]).await,
    ];
    if given("draft") {
        contenders.push(Contender::script(&cluster, &bucket, &["--draft"]).await);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores, shared with the broker and the S3 server; batches of {BATCH}");
    let mut rows = Vec::new();
    for set in SETS.iter().filter(|set| wanted(set)) {
        let (count, rounds) = if given("quick") { (2 * BATCH, 1) } else { (set.count, set.rounds) };
        let uris = photos::put(&bucket, set.size, count);
        rows.extend(measure(&cluster, &mut contenders, set, &uris, rounds).await);
    }

    println!("\npeak memory, resident");
    let peaks: Vec<f64> = contenders.iter().map(Contender::peak).collect();
    for (contender, peak) in contenders.iter().zip(&peaks) {
        println!("  {:<24} {peak:8.1} MB", contender.name);
    }
    rows.push(("peak memory: the loop's / ours".into(), peaks[1] / peaks[0], Some(2.0)));
    table::head("the worker against the Python loop");
    for (name, ratio, goal) in rows {
        table::row(&name, ratio, goal);
    }
}

type Row = (String, f64, Option<f64>);

/// The contenders in turn over the same photos; what ours is worth against each of the others.
async fn measure(
    cluster: &Cluster,
    contenders: &mut [Contender],
    set: &Set,
    uris: &[String],
    rounds: usize,
) -> Vec<Row> {
    let count = uris.len();
    println!("\n{}: {count} a round, {rounds} rounds", set.name);
    for contender in contenders.iter_mut() {
        contender.caption(cluster, &uris[..BATCH]).await;
    }
    let mut rates = vec![Vec::new(); contenders.len()];
    let mut captions = Vec::new();
    for _ in 0..rounds {
        captions.clear();
        for (contender, rates) in contenders.iter_mut().zip(&mut rates) {
            let round = contender.caption(cluster, uris).await;
            rates.push(round.rate);
            captions.push(round.captions);
        }
    }
    let equal = captions[0].iter().filter(|(uri, text)| captions[1].get(*uri) == Some(*text));
    let equal = equal.count();
    let middle: Vec<f64> = rates.iter().cloned().map(median).collect();
    for ((contender, rates), middle) in contenders.iter().zip(&rates).zip(&middle) {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        println!("  {:<24} {middle:8.1} images/s  ({least:.1} to {most:.1})", contender.name);
    }
    println!("  {equal} of {count} captions are the same word for word");
    contenders
        .iter()
        .zip(&middle)
        .enumerate()
        .skip(1)
        .map(|(place, (contender, rate))| {
            let name = format!("{}: images/s against {}", set.name, contender.name);
            (name, middle[0] / rate, (place == 1).then_some(set.goal))
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
