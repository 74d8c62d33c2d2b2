//! The arithmetic on examples that can be done by hand.

use super::*;

fn load() -> Load {
    Load {
        rate: 20_000.0,
        bytes: 2e6,
        pixels: 12e6,
        engine: Engine::Gpu(Model::VitB32, Precision::Tf32),
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
    let large = load().plan();
    // 17 ms of decoding, 2.35 ms around it: 16 cores do 827 a second.
    assert_eq!(large.pod.binds, "the cores");
    assert!((large.pod.images_per_second - 16e3 / 19.35).abs() < 1e-6);
    let cases = [
        (Load { engine: Engine::Rate(500.0), ..load() }, "the engine"),
        (Load { network: 1e9, ..load() }, "the network"),
        (Load { cores: 500, batch: 1024, engine: Engine::Rate(1e6), ..load() }, "the network"),
        (Load { bytes: 1e5, decode_ms: Some(0.1), cores: 500, ..load() }, "requests to S3"),
    ];
    for (load, binds) in cases {
        let load = Load {
            engine: if binds == "the engine" { load.engine } else { Engine::Rate(1e6) },
            ..load
        };
        let pod = load.plan().pod;
        assert_eq!(pod.binds, binds, "{:?}", pod.stages);
        let least = pod.stages.iter().map(|stage| stage.images_per_second);
        assert_eq!(pod.images_per_second, least.fold(f64::INFINITY, f64::min));
    }
}

#[test]
fn more_images_never_take_less() {
    let mut before = load().plan();
    for step in 1..40 {
        let now = Load { rate: 20_000.0 + 3_000.0 * f64::from(step), ..load() }.plan();
        assert!(now.pods >= before.pods && now.s3.prefixes >= before.s3.prefixes);
        assert!(now.cores_busy > before.cores_busy);
        before = now;
    }
}

#[test]
fn pods_carry_the_rate_with_their_headroom() {
    for rate in [1.0, 578.0, 579.0, 20_000.0, 1e6] {
        let plan = Load { rate, ..load() }.plan();
        let usual = plan.pod.images_per_second * 0.7;
        assert!(plan.pods as f64 * usual >= rate - 1e-6, "{rate}");
        assert!((plan.pods - 1) as f64 * usual < rate, "{rate}");
        assert_eq!(plan.partitions, plan.pods * plan.partitions_per_pod);
    }
}

#[test]
fn a_store_serves_so_many_a_prefix() {
    let prefixes = |rate| Load { rate, ..load() }.plan().s3.prefixes;
    assert_eq!([1.0, 5_500.0, 5_501.0, 20_000.0].map(prefixes), [1, 1, 2, 4]);
    assert_eq!(load().plan().s3.gigabits_per_second, 320.0);
}

#[test]
fn a_dead_pod_leaves_its_share_to_the_others() {
    let plan = Load { engine: Engine::Rate(100.0), rate: 210.0, ..load() }.plan();
    assert_eq!((plan.pods, plan.death.others_busy), (3, Some(1.05)));
    assert!((plan.death.piles_up_per_second - 10.0).abs() < 1e-9);
    let alone = Load { engine: Engine::Rate(100.0), rate: 50.0, ..load() }.plan();
    assert_eq!((alone.pods, alone.death.others_busy), (1, None));
    assert_eq!(alone.death.piles_up_per_second, 50.0);
}

#[test]
fn a_backlog_is_drained_by_what_is_not_used() {
    let load = Load { engine: Engine::Rate(100.0), rate: 210.0, backlog: 9_000.0, ..load() };
    assert!((load.plan().backlog.seconds - 100.0).abs() < 1e-9);
}

#[test]
fn without_a_gpu_the_engine_takes_of_the_cores() {
    let cpu = Load {
        engine: Engine::Cpu(Model::Tiny),
        cores: 2,
        bytes: 1e5,
        pixels: 2e5,
        batch: 8,
        ..load()
    };
    let pod = cpu.plan().pod;
    assert_eq!(pod.binds, "the cores");
    assert!(pod.images_per_second < 93.6 && pod.images_per_second > 75.0);
    let off = pod.simulated.images_per_second / pod.images_per_second - 1.0;
    assert!(off.abs() < 0.1, "{off}");
}

#[test]
fn the_simulation_comes_near_the_arithmetic() {
    let cases = [
        load(),
        Load { bytes: 7e4, pixels: 187_500.0, ..load() },
        Load { engine: Engine::Gpu(Model::VitL14, Precision::Tf32), cores: 64, ..load() },
        Load { network: 5e9, ..load() },
    ];
    for load in cases {
        let pod = load.plan().pod;
        let ratio = pod.simulated.images_per_second / pod.images_per_second;
        assert!((0.85..1.05).contains(&ratio), "{}: {ratio}", pod.binds);
    }
}

#[test]
fn a_worker_needs_room_for_the_bodies_that_it_holds() {
    let pod = load().plan().pod;
    assert_eq!(pod.s3_concurrency, 149);
    // 149 under way, 16 that wait for a core, one that has the next, 16 that are decoded; each of
    // 1954 KiB.
    assert_eq!(pod.fetch_bytes, Some(182 * 1954 * 1024));
    let settings = format!("limits.fetch_bytes {}", 182 * 1954 * 1024);
    assert!(load().plan().to_string().contains(&settings));

    let small = Load { bytes: 1e5, ..load() };
    assert_eq!(small.plan().pod.fetch_bytes, None);
    assert!(!small.plan().to_string().contains("limits.fetch_bytes"));

    let huge = Load { bytes: 1e10, cores: 1024, ..load() };
    assert_eq!(huge.plan().pod.fetch_bytes, Some(MOST_FETCH_BYTES));
}

/// Each kind of memory, as the docs bound it (docs/performance.md).
#[test]
fn memory_is_what_the_stages_hold() {
    let memory = |load: Load| load.plan().pod.memory_bytes;
    let pod = load().plan().pod;
    // 224 x 224 pixels: three batches of 12 bytes each, and 3 bytes on their way.
    let pixels = 224.0 * 224.0;
    let inputs = 3.0 * 256.0 * 12.0 * pixels + (256.0 + 16.0 + 1.0) * 3.0 * pixels;
    let messages = pod.max_in_flight as f64 * (150.0 + 1000.0 + 900.0) + 8_388_608.0;
    let sum = 311e6 + 182.0 * 2e6 + 16.0 * 12e6 * 3.0 + inputs + messages;
    assert!((pod.memory_bytes - sum).abs() < 1.0, "{} is not {sum}", pod.memory_bytes);
    // A record that is larger by a kilobyte is so for each reference in flight.
    let records = memory(Load { record_bytes: 1900.0, ..load() }) - pod.memory_bytes;
    assert!((records - 1e3 * pod.max_in_flight as f64).abs() < 1.0, "{records}");
    // On a CPU batches come in slices of four.
    let engine = Engine::Cpu(Model::Tiny);
    let batch = |batch| Load { engine, batch, ..load() };
    let one_more = memory(batch(4)) - memory(batch(3));
    assert!(one_more < 3.0 * 320.0 * 320.0 * 4.0, "{one_more}");
}
