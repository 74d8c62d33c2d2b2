//! One worker as a simulation of events: requests with a tail, a shared link, cores, batches, and
//! bounded queues between them. Input never lacks, so the outcome is what the worker can do.
//!
//! The arithmetic takes means and perfect overlap; here latencies vary, a full queue holds what is
//! behind it up, and the engine waits for whole batches. The seed is fixed: same input, same answer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

const SEED: u64 = 1;
/// At least so many images are captioned, and so many batches; the first third is not counted.
const IMAGES: u64 = 15_000;
const BATCHES: u64 = 45;

/// Times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// Under way at once.
    pub requests: u32,
    /// In the mean: half of it always, the rest with an exponential tail.
    pub latency: f64,
    /// Of one image over the link, which serves one after the other.
    pub transfer: f64,
    pub cores: u32,
    /// Of one core for an image, give or take a third.
    pub handling: f64,
    pub batch: u32,
    /// Of the engine for a batch.
    pub batch_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Simulated {
    pub images_per_second: f64,
    /// The part of the time that the engine works.
    pub engine_busy: f64,
    /// The part of the time that a core works, in the mean.
    pub cores_busy: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fetched,
    Handled,
    Captioned,
}

/// Nanoseconds: floats have no order.
type Time = u64;

struct State {
    pod: Pod,
    random: StdRng,
    now: Time,
    events: BinaryHeap<Reverse<(Time, Event)>>,
    link_free: Time,
    requests_free: u32,
    /// Fetched, and waiting for a place in the queue to the cores.
    held_requests: u32,
    fetched: u32,
    cores_free: u32,
    /// Done with an image that waits for a place in the queue to the engine.
    held_cores: u32,
    decoded: u32,
    engine_runs: bool,
    captioned: u64,
    engine_time: Time,
    core_time: Time,
}

/// Runs until enough images are captioned.
pub fn run(pod: &Pod) -> Simulated {
    let mut state = State {
        pod: *pod,
        random: StdRng::seed_from_u64(SEED),
        now: 0,
        events: BinaryHeap::new(),
        link_free: 0,
        requests_free: pod.requests,
        held_requests: 0,
        fetched: 0,
        cores_free: pod.cores,
        held_cores: 0,
        decoded: 0,
        engine_runs: false,
        captioned: 0,
        engine_time: 0,
        core_time: 0,
    };
    let total = IMAGES.max(BATCHES * u64::from(pod.batch));
    let mut start = None;
    state.settle();
    while state.captioned < total {
        let Some(Reverse((at, event))) = state.events.pop() else { break };
        state.now = at;
        state.happen(event);
        state.settle();
        if start.is_none() && state.captioned >= total / 3 {
            start = Some((state.now, state.captioned, state.engine_time, state.core_time));
        }
    }
    let (began, before, engine, cores) = start.unwrap_or_default();
    let elapsed = ((state.now - began).max(1)) as f64;
    Simulated {
        images_per_second: (state.captioned - before) as f64 / elapsed * 1e9,
        engine_busy: (state.engine_time - engine) as f64 / elapsed,
        cores_busy: (state.core_time - cores) as f64 / elapsed / f64::from(pod.cores),
    }
}

impl State {
    fn happen(&mut self, event: Event) {
        match event {
            Event::Fetched => self.held_requests += 1,
            Event::Handled => self.held_cores += 1,
            Event::Captioned => {
                self.engine_runs = false;
                self.captioned += u64::from(self.pod.batch);
            }
        }
    }

    /// Moves on whatever can, from the end of the flow to its beginning.
    fn settle(&mut self) {
        let Pod { batch, cores, .. } = self.pod;
        loop {
            if !self.engine_runs && self.decoded >= batch {
                self.decoded -= batch;
                self.engine_runs = true;
                let time = nanoseconds(self.pod.batch_seconds);
                self.engine_time += time;
                self.after(time, Event::Captioned);
            }
            if self.held_cores == 0 || self.decoded >= 2 * batch {
                break;
            }
            let moved = self.held_cores.min(2 * batch - self.decoded);
            self.held_cores -= moved;
            self.decoded += moved;
            self.cores_free += moved;
        }
        loop {
            let started = self.cores_free.min(self.fetched);
            for _ in 0..started {
                let share = self.random.random_range(2.0 / 3.0..4.0 / 3.0);
                let time = nanoseconds(self.pod.handling * share);
                self.core_time += time;
                self.after(time, Event::Handled);
            }
            self.cores_free -= started;
            self.fetched -= started;
            let moved = self.held_requests.min((2 * cores).saturating_sub(self.fetched));
            self.held_requests -= moved;
            self.fetched += moved;
            self.requests_free += moved;
            if moved == 0 {
                break;
            }
        }
        for _ in 0..std::mem::take(&mut self.requests_free) {
            self.fetch();
        }
    }

    fn fetch(&mut self) {
        let uniform: f64 = self.random.random_range(f64::EPSILON..1.0);
        let latency = self.pod.latency * (0.5 - 0.5 * uniform.ln());
        // The link takes them in the order of their requests; at saturation it makes no difference.
        let transfer = nanoseconds(self.pod.transfer);
        self.link_free = self.link_free.max(self.now) + transfer;
        let done = self.link_free.max(self.now + nanoseconds(latency));
        self.events.push(Reverse((done, Event::Fetched)));
    }

    fn after(&mut self, time: Time, event: Event) {
        self.events.push(Reverse((self.now + time, event)));
    }
}

fn nanoseconds(seconds: f64) -> Time {
    ((seconds * 1e9) as Time).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is in the way of anything: 100,000 images a second everywhere.
    const FREE: Pod = Pod {
        requests: 1000,
        latency: 0.01,
        transfer: 1e-5,
        cores: 100,
        handling: 1e-3,
        batch: 100,
        batch_seconds: 1e-3,
    };

    fn comes_near(pod: Pod, rate: f64) -> Simulated {
        let found = run(&pod);
        let off = (found.images_per_second / rate - 1.0).abs();
        assert!(off < 0.05, "{} is not near {rate}", found.images_per_second);
        found
    }

    #[test]
    fn each_stage_binds_where_it_is_the_slowest() {
        let engine = comes_near(Pod { batch_seconds: 0.05, ..FREE }, 2_000.0);
        assert!(engine.engine_busy > 0.95 && engine.cores_busy < 0.1, "{engine:?}");
        let cores = comes_near(Pod { handling: 0.05, ..FREE }, 2_000.0);
        assert!(cores.cores_busy > 0.95 && cores.engine_busy < 0.1, "{cores:?}");
        comes_near(Pod { transfer: 5e-4, ..FREE }, 2_000.0);
        comes_near(Pod { requests: 20, ..FREE }, 2_000.0);
    }

    #[test]
    fn the_same_pod_gives_the_same_answer() {
        assert_eq!(run(&FREE).images_per_second, run(&FREE).images_per_second);
    }

    #[test]
    fn stages_of_equal_speed_lose_something() {
        let pod = Pod { requests: 40, latency: 0.02, handling: 0.05, batch_seconds: 0.05, ..FREE };
        let rate = run(&pod).images_per_second;
        assert!(rate < 2_000.0 && rate > 1_000.0, "{rate}");
    }
}
