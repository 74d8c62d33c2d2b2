//! A GPU gives the captions of the CPU.

use super::{EXACT, TF32, assert_near, captions, cpu, cuda, gpu, load, photos};
use fusioncap::config::Runtime;

const BATCH: usize = 8;

#[test]
fn captions_are_those_of_the_cpu_by_beam_search_and_greedily() {
    if !gpu() {
        return;
    }
    for num_beams in [None, Some(1)] {
        let mut reference = load(&cpu(), BATCH, num_beams).unwrap();
        let photos = photos(&reference);
        let expected = captions(&mut reference, &photos, BATCH);
        for (tf32, tolerance) in [(false, EXACT), (true, TF32)] {
            let runtime = Runtime { cuda_tf32: tf32, ..cuda() };
            let mut engine = load(&runtime, BATCH, num_beams).unwrap();
            let found = captions(&mut engine, &photos, BATCH);
            let what = format!("beams {num_beams:?}, TF32 {tf32}");
            assert_near(&found, &expected, tolerance, &what);
        }
    }
}

/// The vision tower always computes whole batches, so an image's embedding is the same to the last
/// bit in any batch. The beam search runs with as many rows as there are beams.
#[test]
fn embeddings_and_words_do_not_depend_on_the_batch() {
    if !gpu() {
        return;
    }
    let mut engine = load(&cuda(), BATCH, None).unwrap();
    let photos = photos(&engine);
    let full = captions(&mut engine, &photos, BATCH);
    for fill in [1, 3, 7] {
        let found = captions(&mut engine, &photos, fill);
        for (one, other) in found.iter().zip(&full) {
            assert_eq!(one.embedding, other.embedding, "{fill} in a batch");
        }
        assert_near(&found, &full, EXACT, &format!("{fill} in a batch"));
    }
}

#[test]
fn large_batches_are_captioned() {
    if !gpu() {
        return;
    }
    let mut engine = load(&cuda(), 256, None).unwrap();
    let photos = photos(&engine);
    let many: Vec<Vec<u8>> = photos.iter().cycle().take(256).cloned().collect();
    let found = captions(&mut engine, &many, 256);
    let expected = captions(&mut load(&cpu(), BATCH, None).unwrap(), &photos, BATCH);
    assert_near(&found[..photos.len()], &expected, EXACT, "256 in a batch");
    assert_near(&found[photos.len()..2 * photos.len()], &expected, EXACT, "the next of them");
}
