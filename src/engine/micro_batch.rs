//! How the encoder cuts a batch into micro-batches: each is one run at one of a few fixed row
//! counts.

use crate::config::{Provider, Runtime};
use crate::error::{Error, ErrorKind};

/// Fewest rows of a run. A matrix product with one row uses another kernel, which rounds
/// differently: a single image gets a second row.
pub const MIN_ROWS: usize = 2;

/// Most images that one session encodes at once on the CPU.
pub const MAX_CPU_ROWS: usize = 4;

/// Images of a batch that are encoded in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MicroBatch {
    /// Index of the first image in the batch.
    pub first: usize,
    pub images: usize,
    /// Rows of the run; those after the images are padding.
    pub rows: usize,
}

/// The row counts that sessions run at, ascending. An accelerator selects its kernels by the row
/// count, and another kernel may round differently: there, every run has `batch_size` rows.
pub fn row_counts(runtime: &Runtime, batch_size: usize) -> Vec<usize> {
    if runtime.providers.first().is_some_and(|provider| *provider != Provider::Cpu) {
        return vec![batch_size];
    }
    let mut counts = [MIN_ROWS, MAX_CPU_ROWS].map(|rows| rows.min(batch_size)).to_vec();
    counts.dedup();
    counts
}

/// Cuts a batch of `images` into micro-batches that keep all `sessions` busy, none with more images
/// than the largest of `row_counts`.
pub fn cut(images: usize, sessions: usize, row_counts: &[usize]) -> Vec<MicroBatch> {
    let largest = row_counts.last().copied().unwrap_or(1);
    let length = images.div_ceil(sessions.max(1)).max(MIN_ROWS).min(largest);
    let micro_batch = |first| {
        let images = length.min(images - first);
        let rows = row_counts.iter().copied().find(|rows| *rows >= images);
        MicroBatch { first, images, rows: rows.unwrap_or(images) }
    };
    (0..images).step_by(length).map(micro_batch).collect()
}

/// For a batch of `images` where 1 to `largest` are allowed.
pub fn batch_size_error(images: usize, largest: usize) -> Error {
    Error::new(ErrorKind::Internal, "a batch has the wrong size")
        .with_context("images", images)
        .with_context("allowed", format!("1 to {largest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_rows(images: usize, sessions: usize, row_counts: &[usize]) -> Vec<(usize, usize)> {
        let micro_batches = cut(images, sessions, row_counts);
        micro_batches.into_iter().map(|each| (each.images, each.rows)).collect()
    }

    #[test]
    fn micro_batches_keep_the_sessions_busy_and_are_padded() {
        let cpu = row_counts(&Runtime::default(), 32);
        assert_eq!(cpu, [2, 4]);
        assert_eq!(cut_rows(7, 2, &cpu), [(4, 4), (3, 4)]);
        assert_eq!(cut_rows(4, 2, &cpu), [(2, 2), (2, 2)]);
        assert_eq!(cut_rows(1, 2, &cpu), [(1, 2)]);
        let cuda = Runtime { providers: vec![Provider::Cuda], ..Runtime::default() };
        assert_eq!(cut_rows(5, 1, &row_counts(&cuda, 32)), [(5, 32)]);
        assert_eq!(row_counts(&Runtime::default(), 1), [1]);
        assert_eq!(cut_rows(1, 4, &[1]), [(1, 1)]);
    }
}
