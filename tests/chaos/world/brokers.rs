//! Three brokers, one of which may be down at a time: the next one only when every partition of
//! every topic has all its replicas in sync again.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kit::kafka::Cluster;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::now;

pub const BROKERS: i32 = 3;
/// A cluster that is not whole again after so long never will be.
const PATIENCE: Duration = Duration::from_secs(240);

/// When a broker went, in milliseconds since 1970: asked to at `from`, gone at `to`.
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    pub from: i64,
    pub to: i64,
}

pub struct Brokers {
    pub cluster: Arc<Cluster>,
    repair: Option<JoinHandle<()>>,
}

impl Brokers {
    pub fn start() -> Self {
        let cluster = Arc::new(Cluster::start_own(BROKERS, 0, &[]));
        assert!(cluster.is_ours(), "chaos needs brokers that it may kill");
        Self { cluster, repair: None }
    }

    /// Ends a broker by `kill` or `stop`, and has it started again after `down`.
    pub fn bounce(&mut self, command: &'static str, number: i32, down: Duration) -> Gone {
        assert!(!self.is_under_repair(), "one at a time");
        let from = now();
        self.cluster.broker(command, number);
        let to = now();
        assert!(!self.cluster.is_listening(number as usize), "broker {number} is still there");
        let cluster = Arc::clone(&self.cluster);
        self.repair = Some(std::thread::spawn(move || {
            std::thread::sleep(down);
            cluster.broker("start", number);
            assert!(cluster.is_listening(number as usize), "broker {number} is not back");
            await_whole(&cluster);
        }));
        Gone { from, to }
    }

    /// Whether a broker is down, or back and not in sync yet.
    pub fn is_under_repair(&mut self) -> bool {
        if self.repair.as_ref().is_some_and(|repair| !repair.is_finished()) {
            return true;
        }
        self.await_repair();
        false
    }

    pub fn await_repair(&mut self) {
        if let Some(repair) = self.repair.take() {
            repair.join().expect("the broker comes back and the cluster is whole again");
        }
    }
}

fn await_whole(cluster: &Cluster) {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &cluster.bootstrap).create().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = whole(&client) {
        assert!(Instant::now() < deadline, "the cluster is not whole: {why}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn whole(client: &BaseConsumer) -> Result<(), String> {
    let metadata =
        client.fetch_metadata(None, Duration::from_secs(10)).map_err(|error| error.to_string())?;
    if metadata.brokers().len() != BROKERS as usize {
        return Err(format!("{} brokers", metadata.brokers().len()));
    }
    for topic in metadata.topics() {
        for partition in topic.partitions() {
            let (replicas, in_sync) = (partition.replicas().len(), partition.isr().len());
            if partition.error().is_some() || in_sync < replicas {
                let (name, number) = (topic.name(), partition.id());
                return Err(format!("{in_sync} of {replicas} in sync of {name}-{number}"));
            }
        }
    }
    Ok(())
}
