//! How many workers a stream of images needs: arithmetic over the costs of [`costs`] and the engines
//! of [`measured`]. Nothing is measured here, no service is asked.
//!
//! Images pass stages side by side: the requests under way, the network, the cores, the engine. Each
//! stage alone has a rate; the lowest of them is the worker's.

pub mod costs;
pub mod measured;
mod report;

use serde::Serialize;

/// Upper limit of `s3.concurrency`.
const MOST_REQUESTS: f64 = 1024.0;
/// Requests under way beyond those that the mean latency asks for.
const REQUEST_SLACK: f64 = 1.25;
/// Partitions per worker: those of a dead worker go to several others.
const PARTITIONS: u64 = 4;
/// Bytes of a reference on the input topic.
const REFERENCE_BYTES: f64 = 150.0;
/// Memory that a worker takes for a reference in flight besides the reference's bytes, about.
const IN_FLIGHT_BYTES: f64 = 1000.0;
/// Memory of the Kafka consumer's prefetched messages: `queued.max.messages.kbytes` as the worker
/// sets it.
const READ_AHEAD_BYTES: f64 = 8192.0 * 1024.0;
/// Default of `limits.max_buffered_bytes`, and its upper limit.
pub const DEFAULT_BUFFERED_BYTES: u64 = 256 << 20;
const MOST_BUFFERED_BYTES: u64 = 1 << 40;
/// Batches of pixels in memory: one fills, one waits, one is encoded.
const BATCHES: f64 = 3.0;
/// The engine's input has room for a multiple of this number of images.
const MICRO_BATCH: u32 = 4;

/// The engine of one worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Engine {
    /// Images per second of the engine alone.
    pub rate: f64,
    pub source: Source,
    /// It computes on the worker's cores, all of which `rate` takes.
    pub on_cores: bool,
    /// Numbers in the model's input.
    pub input: f64,
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// On the command line.
    Given,
    /// In this project, on other hardware than the reader's: docs/performance.md.
    Measured,
    /// By Amazon, about S3.
    Published,
}

/// The question. Every field is positive, but `headroom` (0 to 1, exclusive) and `backlog` may be 0.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Images per second.
    pub rate: f64,
    /// Size of an image in the store.
    pub bytes: f64,
    pub pixels: f64,
    pub engine: Engine,
    /// Images per batch.
    pub batch: u32,
    /// Cores of one worker.
    pub cores: u32,
    /// ms of one core to decode an image; without it, the time goes by the image's pixels.
    pub decode_ms: Option<f64>,
    /// Network of one worker, bits per second.
    pub network: f64,
    /// Size of a caption record.
    pub record_bytes: f64,
    /// The part of a worker that stays unused on a usual day.
    pub headroom: f64,
    /// References that wait.
    pub backlog: f64,
}

/// The rate of one worker if this stage alone limits it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub images_per_second: f64,
    pub source: Source,
}

#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub images_per_second: f64,
    pub pods: u64,
    pub partitions: u64,
    pub partitions_per_pod: u64,
    pub pod: Pod,
    /// Busy cores of all workers together.
    pub cores_busy: f64,
    pub s3: Store,
    pub kafka: Kafka,
    pub worker_failure: WorkerFailure,
    pub backlog: Backlog,
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    pub images_per_second: f64,
    pub bottleneck: &'static str,
    pub stages: Vec<Stage>,
    pub cores: u32,
    pub core_ms_per_image: f64,
    /// `batch.size`
    pub batch_size: u32,
    /// `s3.concurrency`
    pub s3_concurrency: u32,
    /// `limits.max_in_flight`
    pub max_in_flight: u64,
    /// `limits.max_buffered_bytes`; absent if its default is enough.
    pub max_buffered_bytes: Option<u64>,
    pub memory_bytes: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Store {
    pub gets_per_second: f64,
    pub gigabits_per_second: f64,
    pub prefixes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Kafka {
    pub in_bytes_per_second: f64,
    pub out_bytes_per_second: f64,
}

/// The state after a worker died.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerFailure {
    /// Utilisation of the others, 1 when they are full; absent if there are none.
    pub others_busy: Option<f64>,
    /// References per second that pile up until it is replaced.
    pub piles_up_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    pub references: f64,
    pub seconds: f64,
}

impl Workload {
    pub fn plan(&self) -> Plan {
        let stages = self.stages();
        let slowest = stages
            .iter()
            .min_by(|one, other| one.images_per_second.total_cmp(&other.images_per_second));
        let (capacity, bottleneck) =
            slowest.map_or((0.0, "nothing"), |stage| (stage.images_per_second, stage.name));
        let pods = whole(self.rate / (capacity * (1.0 - self.headroom)));
        let requests = self.requests(capacity);
        let all = pods as f64 * capacity;
        let others = (pods - 1) as f64 * capacity;
        Plan {
            images_per_second: self.rate,
            pods,
            partitions: pods * PARTITIONS,
            partitions_per_pod: PARTITIONS,
            cores_busy: self.rate * self.core_ms() / 1e3,
            s3: Store {
                gets_per_second: self.rate,
                gigabits_per_second: self.rate * self.bytes * 8.0 / 1e9,
                prefixes: whole(self.rate / costs::GETS_PER_PREFIX),
            },
            kafka: Kafka {
                in_bytes_per_second: self.rate * REFERENCE_BYTES,
                out_bytes_per_second: self.rate * self.record_bytes,
            },
            worker_failure: WorkerFailure {
                others_busy: (pods > 1).then(|| self.rate / others),
                piles_up_per_second: (self.rate - others).max(0.0),
            },
            backlog: Backlog {
                references: self.backlog,
                seconds: if self.backlog == 0.0 { 0.0 } else { self.backlog / (all - self.rate) },
            },
            pod: Pod {
                images_per_second: capacity,
                bottleneck,
                stages,
                cores: self.cores,
                core_ms_per_image: self.core_ms(),
                batch_size: self.batch,
                s3_concurrency: requests,
                max_in_flight: self.in_flight(requests),
                max_buffered_bytes: self.max_buffered_bytes(requests),
                memory_bytes: self.memory(requests),
            },
        }
    }

    /// The stages in the order of the flow.
    fn stages(&self) -> Vec<Stage> {
        let stage = |name, images_per_second, source| Stage { name, images_per_second, source };
        let cores = f64::from(self.cores) * 1e3 / self.core_ms();
        let decoding = self.decode_ms.map_or(Source::Measured, |_| Source::Given);
        vec![
            stage("requests to S3", MOST_REQUESTS / self.latency(), Source::Published),
            stage("the network", self.network / 8.0 / self.bytes, Source::Given),
            stage("the cores", cores, decoding),
            stage("the engine", self.engine.rate, self.engine.source),
        ]
    }

    /// Seconds from a GET to the object's last byte.
    fn latency(&self) -> f64 {
        costs::FIRST_BYTE_SECONDS + self.bytes / costs::CONNECTION_RATE
    }

    /// ms of one core per image: decoding, everything around it, and the model if it has no GPU.
    fn core_ms(&self) -> f64 {
        let decode = self.decode_ms.unwrap_or_else(|| costs::decode_ms(self.pixels));
        let engine = match self.engine.on_cores {
            true => f64::from(self.cores) * 1e3 / self.engine.rate,
            false => 0.0,
        };
        decode + costs::OVERHEAD_MS + engine
    }

    fn requests(&self, capacity: f64) -> u32 {
        (capacity * self.latency() * REQUEST_SLACK).ceil().clamp(1.0, MOST_REQUESTS) as u32
    }

    /// References that are fetched, wait for a core, are decoded, wait for the engine, are captioned
    /// or are committed.
    fn in_flight(&self, requests: u32) -> u64 {
        u64::from(requests) + 3 * u64::from(self.cores) + 4 * u64::from(self.batch)
    }

    /// Objects in memory: those under way; one waiting for each core and one that is next; and one
    /// that is decoded on each core.
    fn bodies(&self, requests: u32) -> u64 {
        u64::from(requests) + 2 * u64::from(self.cores) + 1
    }

    /// Returns the `limits.max_buffered_bytes` at which no request waits for another's bytes. The worker counts
    /// whole KiB.
    fn max_buffered_bytes(&self, requests: u32) -> Option<u64> {
        let each = (self.bytes / 1024.0).ceil() as u64 * 1024;
        let needed = (self.bodies(requests) * each).min(MOST_BUFFERED_BYTES);
        (needed > DEFAULT_BUFFERED_BYTES).then_some(needed)
    }

    fn memory(&self, requests: u32) -> f64 {
        let (cores, batch) = (f64::from(self.cores), f64::from(self.batch));
        let input = self.engine.input;
        let encoded = self.bodies(requests) as f64 * self.bytes;
        let decoding = cores * self.pixels * 3.0;
        // Pixels are floats in a batch, and bytes before: a batch that waits, an image that each core
        // hands over, and one that is next.
        let batched = BATCHES * f64::from(self.batch.next_multiple_of(MICRO_BATCH)) * input * 4.0;
        let decoded = (batch + cores + 1.0) * input;
        let message = REFERENCE_BYTES + IN_FLIGHT_BYTES + self.record_bytes;
        let messages = self.in_flight(requests) as f64 * message + READ_AHEAD_BYTES;
        costs::IDLE_BYTES + encoded + decoding + batched + decoded + messages
    }
}

/// Rounded up, at least 1.
fn whole(value: f64) -> u64 {
    // A sum of fractions that should be 3 may be a little more.
    (value - 1e-9).ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests;
