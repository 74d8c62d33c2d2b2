//! `fusioncap verify` and `fusioncap redrive` as processes, against a real Kafka and a real worker.

#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/bucket.rs"]
mod bucket;
mod command;
mod interrupted;
#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/kafka.rs"]
mod kafka;
mod letters;
#[path = "../object_store/mod.rs"]
mod object_store;
#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/process.rs"]
mod process;
#[allow(dead_code, reason = "shared with tests/worker")]
#[path = "../worker/proxy.rs"]
mod proxy;
mod redrive;
mod topic;
mod verify;

use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use kafka::Cluster;

/// One broker that all tests share, while any of them runs.
pub fn shared_cluster() -> Arc<Cluster> {
    static SHARED: LazyLock<Mutex<Weak<Cluster>>> = LazyLock::new(Mutex::default);
    let mut shared = SHARED.lock();
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(Cluster::start(1));
    *shared = Arc::downgrade(&cluster);
    cluster
}
