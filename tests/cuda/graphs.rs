//! The vision tower as a CUDA graph: captured once, replayed for batches of any fill on any thread,
//! and captured beside a running engine.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{EXACT, assert_near, captions, cuda, gpu, load, photos};
use fusioncap::config::Runtime;
use fusioncap::engine::{Caption, Engine};

const BATCH: usize = 8;

fn with_graphs() -> Runtime {
    Runtime { cuda_graphs: true, ..cuda() }
}

/// The photos' captions with each half of the engine on a thread of its own, as in the worker.
fn split_captions(engine: Engine, photos: &[Vec<u8>], fill: usize) -> Vec<Caption> {
    let (mut encoder, mut decoder) = engine.split();
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for batch in photos.chunks(fill) {
                let views: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
                send.send(encoder.encode(&views).unwrap()).unwrap();
            }
        });
        let captions = scope.spawn(move || {
            receive.iter().flat_map(|encoded| decoder.generate(encoded).unwrap()).collect()
        });
        captions.join().unwrap()
    })
}

#[test]
fn a_replayed_graph_captions_batches_of_any_fill() {
    if !gpu() {
        return;
    }
    let mut plain = load(&cuda(), BATCH, None).unwrap();
    let photos = photos(&plain);
    let expected = captions(&mut plain, &photos, BATCH);
    let mut engine = load(&with_graphs(), BATCH, None).unwrap();
    let full = captions(&mut engine, &photos, BATCH);
    assert_near(&full, &expected, EXACT, "captured");
    for fill in [5, 1, 8, 2, 8] {
        let found = captions(&mut engine, &photos, fill);
        for (one, other) in found.iter().zip(&full) {
            assert_eq!(one.embedding, other.embedding, "{fill} in a batch");
        }
        assert_near(&found, &expected, EXACT, &format!("captured, {fill} in a batch"));
    }
}

#[test]
fn a_graph_is_replayed_on_any_thread() {
    if !gpu() {
        return;
    }
    let mut plain = load(&cuda(), BATCH, None).unwrap();
    let photos = photos(&plain);
    let expected = captions(&mut plain, &photos, BATCH);
    for fill in [8, 3] {
        let engine = load(&with_graphs(), BATCH, None).unwrap();
        let found = split_captions(engine, &photos, fill);
        assert_near(&found, &expected, EXACT, &format!("two threads, {fill} in a batch"));
    }
}

/// As when a worker loads a changed model.
#[test]
fn a_graph_is_captured_beside_a_running_engine() {
    if !gpu() {
        return;
    }
    let mut working = load(&with_graphs(), BATCH, None).unwrap();
    let photos = photos(&working);
    let expected = captions(&mut working, &photos, BATCH);
    let loaded = AtomicBool::new(false);
    let batches = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let mut batches = 0;
            while !loaded.load(Ordering::Relaxed) {
                let found = captions(&mut working, &photos, BATCH);
                assert_near(&found, &expected, EXACT, "beside an engine that loads");
                batches += 1;
            }
            batches
        });
        for _ in 0..3 {
            let mut next = load(&with_graphs(), BATCH, None).unwrap();
            let found = captions(&mut next, &photos, BATCH);
            assert_near(&found, &expected, EXACT, "loaded beside a running engine");
        }
        loaded.store(true, Ordering::Relaxed);
        work.join().unwrap()
    });
    assert!(batches > 1, "nothing ran meanwhile");
}
