//! How many workers a stream of images needs: arithmetic over the costs of [`costs`], and a
//! [`simulation`] of one worker that checks it. Nothing is measured here, no service is asked.
//!
//! An image passes stages side by side: the requests under way, the network, the cores, the engine.
//! Each alone would do so many images a second; the least of these is what a worker does.

pub mod costs;
mod report;
pub mod simulation;

use costs::{Model, Precision};
use serde::Serialize;
use simulation::Simulated;

/// `s3.concurrency` goes no higher.
const MOST_REQUESTS: f64 = 1024.0;
/// Requests under way beyond those that the mean latency asks for.
const REQUEST_SLACK: f64 = 1.25;
/// Partitions a worker: a dead one's are shared out evenly among several.
const PARTITIONS: u64 = 4;
/// Bytes of a reference on the input topic.
const REFERENCE_BYTES: f64 = 150.0;
/// What a worker keeps of a reference beside its bytes, about.
const IN_FLIGHT_BYTES: f64 = 1000.0;
/// What the Kafka consumer has read ahead: `queued.max.messages.kbytes` as the worker sets it.
const READ_AHEAD_BYTES: f64 = 8192.0 * 1024.0;
/// `limits.fetch_bytes` where nothing is set, and the most that it may be.
pub const DEFAULT_FETCH_BYTES: u64 = 256 << 20;
const MOST_FETCH_BYTES: u64 = 1 << 40;
/// Batches of pixels that go round: one fills, one waits, one is encoded.
const BATCHES: f64 = 3.0;
/// The engine's input has room for a multiple of so many images.
const SLICE: u32 = 4;

/// What captions an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Engine {
    Gpu(Model, Precision),
    /// On the same cores as all else.
    Cpu(Model),
    /// Images a second, as measured elsewhere.
    Rate(f64),
}

/// What is asked: every field is positive, but for `headroom` (0 to 1, exclusive) and `backlog`.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Images a second.
    pub rate: f64,
    /// Of an image in the store.
    pub bytes: f64,
    pub pixels: f64,
    pub engine: Engine,
    pub batch: u32,
    /// Of one worker.
    pub cores: u32,
    /// ms of one core; by the image's pixels without it.
    pub decode_ms: Option<f64>,
    /// Of one worker, bits a second.
    pub network: f64,
    pub record_bytes: f64,
    /// The part of a worker that stays unused on a usual day.
    pub headroom: f64,
    /// References that wait.
    pub backlog: f64,
}

/// What one worker could do if nothing but this stage were in its way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub images_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub images_per_second: f64,
    pub pods: u64,
    pub partitions: u64,
    pub partitions_per_pod: u64,
    pub pod: Pod,
    /// Of all workers, busy at the rate asked.
    pub cores_busy: f64,
    pub s3: Store,
    pub kafka: Kafka,
    pub death: Death,
    pub backlog: Backlog,
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    pub images_per_second: f64,
    pub binds: &'static str,
    pub stages: Vec<Stage>,
    pub simulated: Simulated,
    pub cores: u32,
    pub core_ms_per_image: f64,
    /// `batch.size`
    pub batch_size: u32,
    /// `s3.concurrency`
    pub s3_concurrency: u32,
    /// `limits.max_in_flight`
    pub max_in_flight: u64,
    /// `limits.fetch_bytes`; absent where its default is enough.
    pub fetch_bytes: Option<u64>,
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

/// What is left when a worker dies.
#[derive(Clone, Debug, Serialize)]
pub struct Death {
    /// How busy the others are, 1 for all they can; absent without others.
    pub others_busy: Option<f64>,
    /// References that pile up a second until it is replaced.
    pub piles_up_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    pub references: f64,
    pub seconds: f64,
}

impl Load {
    pub fn plan(&self) -> Plan {
        let stages = self.stages();
        let slowest = stages
            .iter()
            .min_by(|one, other| one.images_per_second.total_cmp(&other.images_per_second));
        let (capacity, binds) =
            slowest.map_or((0.0, "nothing"), |stage| (stage.images_per_second, stage.name));
        let pods = whole(self.rate / (capacity * (1.0 - self.headroom)));
        let requests = self.requests(capacity);
        let simulated = simulation::run(&self.simulation(requests));
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
            death: Death {
                others_busy: (pods > 1).then(|| self.rate / others),
                piles_up_per_second: (self.rate - others).max(0.0),
            },
            backlog: Backlog {
                references: self.backlog,
                seconds: if self.backlog == 0.0 { 0.0 } else { self.backlog / (all - self.rate) },
            },
            pod: Pod {
                images_per_second: capacity,
                binds,
                stages,
                simulated,
                cores: self.cores,
                core_ms_per_image: self.core_ms(),
                batch_size: self.batch,
                s3_concurrency: requests,
                max_in_flight: self.in_flight(requests),
                fetch_bytes: self.fetch_bytes(requests),
                memory_bytes: self.memory(requests),
            },
        }
    }

    /// In the order of the flow.
    fn stages(&self) -> Vec<Stage> {
        let stage = |name, images_per_second| Stage { name, images_per_second };
        let mut stages = vec![
            stage("requests to S3", MOST_REQUESTS / self.latency()),
            stage("the network", self.network / 8.0 / self.bytes),
            stage("the cores", f64::from(self.cores) * 1e3 / self.core_ms()),
        ];
        match self.engine {
            // Counted among what the cores do.
            Engine::Cpu(_) => {}
            Engine::Gpu(..) | Engine::Rate(_) => {
                stages.push(stage("the engine", f64::from(self.batch) / self.batch_seconds()));
            }
        }
        stages
    }

    /// Seconds from a GET to the object's last byte.
    fn latency(&self) -> f64 {
        costs::FIRST_BYTE_SECONDS + self.bytes / costs::CONNECTION_RATE
    }

    /// ms of one core that decoding and all that surrounds it take an image.
    fn handling_ms(&self) -> f64 {
        let decode = self.decode_ms.unwrap_or_else(|| costs::decode_ms(self.pixels));
        decode + costs::transport_ms(self.bytes)
    }

    fn engine_ms(&self) -> f64 {
        match self.engine {
            Engine::Cpu(model) => model.core_ms(),
            Engine::Gpu(..) | Engine::Rate(_) => 0.0,
        }
    }

    fn core_ms(&self) -> f64 {
        self.handling_ms() + self.engine_ms()
    }

    /// Seconds that the engine takes for a batch. On a CPU it has the part of the cores that it
    /// gets when all are busy.
    fn batch_seconds(&self) -> f64 {
        let batch = f64::from(self.batch);
        match self.engine {
            Engine::Gpu(model, precision) => model.batch_seconds(batch, precision),
            Engine::Rate(rate) => batch / rate,
            Engine::Cpu(_) => batch * self.core_ms() / 1e3 / f64::from(self.cores),
        }
    }

    fn requests(&self, capacity: f64) -> u32 {
        (capacity * self.latency() * REQUEST_SLACK).ceil().clamp(1.0, MOST_REQUESTS) as u32
    }

    fn simulation(&self, requests: u32) -> simulation::Pod {
        let shared = self.core_ms() / self.handling_ms();
        simulation::Pod {
            requests,
            latency: self.latency(),
            transfer: self.bytes * 8.0 / self.network,
            cores: self.cores,
            handling: self.handling_ms() / 1e3 * shared,
            batch: self.batch,
            batch_seconds: self.batch_seconds(),
        }
    }

    /// What is fetched, waits for a core, is decoded, waits for the engine, is captioned, and is
    /// committed.
    fn in_flight(&self, requests: u32) -> u64 {
        u64::from(requests) + 3 * u64::from(self.cores) + 4 * u64::from(self.batch)
    }

    /// Objects in memory: those under way; those read, of which one a core waits and one has the
    /// next turn; and one a core that is decoded.
    fn bodies(&self, requests: u32) -> u64 {
        u64::from(requests) + 2 * u64::from(self.cores) + 1
    }

    /// With less, requests would wait for one another's bytes. The worker counts whole KiB.
    fn fetch_bytes(&self, requests: u32) -> Option<u64> {
        let each = (self.bytes / 1024.0).ceil() as u64 * 1024;
        let needed = (self.bodies(requests) * each).min(MOST_FETCH_BYTES);
        (needed > DEFAULT_FETCH_BYTES).then_some(needed)
    }

    fn memory(&self, requests: u32) -> f64 {
        let (cores, batch) = (f64::from(self.cores), f64::from(self.batch));
        let input = match self.engine {
            Engine::Gpu(model, _) | Engine::Cpu(model) => model.input(),
            Engine::Rate(_) => Model::VitB32.input(),
        };
        let encoded = self.bodies(requests) as f64 * self.bytes;
        let decoding = cores * self.pixels * 3.0;
        // Floats once they have a place in a batch, bytes on their way there: a batch that waits,
        // one a core that is handed over, one that has its turn.
        let batched = BATCHES * f64::from(self.batch.next_multiple_of(SLICE)) * input * 4.0;
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
