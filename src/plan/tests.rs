//! The arithmetic on examples that can be done by hand.

use super::measured::Model;
use super::*;

fn engine(rate: f64) -> Engine {
    let input = Model::VitB32.input();
    Engine { rate, source: Source::Given, on_cores: false, input }
}

fn workload() -> Workload {
    Workload {
        rate: 20_000.0,
        bytes: 2e6,
        pixels: 12e6,
        engine: engine(1_970.0),
        batch: 256,
        cores: 16,
        decode_ms: None,
        network: 100e9,
        record_bytes: 900.0,
        headroom: 0.3,
        backlog: 0.0,
    }
}

#[test]
fn the_slowest_stage_binds() {
    let large = workload().plan();
    // 13.5 ms of decoding, 1.5 ms around it: 16 cores do 1,067 images per second.
    assert_eq!(large.pod.bottleneck, "the cores");
    assert!((large.pod.images_per_second - 16e3 / 15.0).abs() < 1e-6);
    let fast = Workload { engine: engine(1e6), ..workload() };
    let cases = [
        (Workload { engine: engine(500.0), ..workload() }, "the engine"),
        (Workload { network: 1e9, ..fast }, "the network"),
        (Workload { cores: 500, batch: 1024, ..fast }, "the network"),
        (Workload { bytes: 1e5, decode_ms: Some(0.1), cores: 500, ..fast }, "requests to S3"),
    ];
    for (load, bottleneck) in cases {
        let pod = load.plan().pod;
        assert_eq!(pod.bottleneck, bottleneck, "{:?}", pod.stages);
        let least = pod.stages.iter().map(|stage| stage.images_per_second);
        assert_eq!(pod.images_per_second, least.fold(f64::INFINITY, f64::min));
    }
}

#[test]
fn more_images_never_take_less() {
    let mut before = workload().plan();
    for step in 1..40 {
        let now = Workload { rate: 20_000.0 + 3_000.0 * f64::from(step), ..workload() }.plan();
        assert!(now.pods >= before.pods && now.s3.prefixes >= before.s3.prefixes);
        assert!(now.cores_busy > before.cores_busy);
        before = now;
    }
}

#[test]
fn pods_carry_the_rate_with_their_headroom() {
    for rate in [1.0, 746.0, 747.0, 20_000.0, 1e6] {
        let plan = Workload { rate, ..workload() }.plan();
        let usual = plan.pod.images_per_second * 0.7;
        assert!(plan.pods as f64 * usual >= rate - 1e-6, "{rate}");
        assert!((plan.pods - 1) as f64 * usual < rate, "{rate}");
        assert_eq!(plan.partitions, plan.pods * plan.partitions_per_pod);
    }
}

#[test]
fn a_prefix_serves_a_limited_rate() {
    let prefixes = |rate| Workload { rate, ..workload() }.plan().s3.prefixes;
    assert_eq!([1.0, 5_500.0, 5_501.0, 20_000.0].map(prefixes), [1, 1, 2, 4]);
    assert_eq!(workload().plan().s3.gigabits_per_second, 320.0);
}

#[test]
fn a_dead_pod_leaves_its_share_to_the_others() {
    let plan = Workload { engine: engine(100.0), rate: 210.0, ..workload() }.plan();
    assert_eq!((plan.pods, plan.worker_failure.others_busy), (3, Some(1.05)));
    assert!((plan.worker_failure.piles_up_per_second - 10.0).abs() < 1e-9);
    let alone = Workload { engine: engine(100.0), rate: 50.0, ..workload() }.plan();
    assert_eq!((alone.pods, alone.worker_failure.others_busy), (1, None));
    assert_eq!(alone.worker_failure.piles_up_per_second, 50.0);
}

#[test]
fn a_backlog_is_drained_by_what_is_not_used() {
    let load = Workload { engine: engine(100.0), rate: 210.0, backlog: 9_000.0, ..workload() };
    assert!((load.plan().backlog.seconds - 100.0).abs() < 1e-9);
}

#[test]
fn without_a_gpu_the_engine_shares_the_cores() {
    let engine = Engine { on_cores: true, ..engine(237.0) };
    let pod = Workload { engine, ..workload() }.plan().pod;
    assert_eq!(pod.bottleneck, "the cores");
    // 16 cores for 1/237 s, and 15 ms of one.
    let expected = 1.0 / (1.0 / 237.0 + 0.015 / 16.0);
    assert!((pod.images_per_second - expected).abs() < 1e-6, "{}", pod.images_per_second);
}

#[test]
fn a_worker_needs_room_for_the_bodies_that_it_holds() {
    let pod = workload().plan().pod;
    assert_eq!(pod.s3_concurrency, 192);
    // 192 under way, 16 that wait for a core, one that is next, 16 that are decoded; each of
    // 1954 KiB.
    assert_eq!(pod.max_buffered_bytes, Some(225 * 1954 * 1024));
    let settings = format!("limits.max_buffered_bytes {}", 225 * 1954 * 1024);
    assert!(workload().plan().to_string().contains(&settings));

    let small = Workload { bytes: 1e5, ..workload() };
    assert_eq!(small.plan().pod.max_buffered_bytes, None);
    assert!(!small.plan().to_string().contains("limits.max_buffered_bytes"));

    let huge = Workload { bytes: 1e10, cores: 1024, ..workload() };
    assert_eq!(huge.plan().pod.max_buffered_bytes, Some(MOST_BUFFERED_BYTES));
}

/// Each kind of memory, with the bounds of docs/performance.md.
#[test]
fn memory_is_what_the_stages_hold() {
    let memory = |load: Workload| load.plan().pod.memory_bytes;
    let pod = workload().plan().pod;
    // 224 x 224 pixels: three batches of 12 bytes each, and 3 bytes on their way.
    let pixels = 224.0 * 224.0;
    let inputs = 3.0 * 256.0 * 12.0 * pixels + (256.0 + 16.0 + 1.0) * 3.0 * pixels;
    let messages = pod.max_in_flight as f64 * (150.0 + 1000.0 + 900.0) + 8_388_608.0;
    let sum = 311e6 + 225.0 * 2e6 + 16.0 * 12e6 * 3.0 + inputs + messages;
    assert!((pod.memory_bytes - sum).abs() < 1.0, "{} is not {sum}", pod.memory_bytes);
    // A larger record takes more for each reference in flight.
    let records = memory(Workload { record_bytes: 1900.0, ..workload() }) - pod.memory_bytes;
    assert!((records - 1e3 * pod.max_in_flight as f64).abs() < 1.0, "{records}");
    // The room of a batch is a multiple of four images.
    let batch = |batch| Workload { batch, ..workload() };
    let one_more = memory(batch(4)) - memory(batch(3));
    assert!(one_more < 3.0 * pixels * 4.0, "{one_more}");
}
