//! Keeps other threads away from the GPU while a CUDA graph is captured.
//!
//! ONNX Runtime captures with `cudaStreamCaptureModeGlobal`: while a capture runs, no thread of the
//! process may allocate GPU memory or copy to the GPU. Such a call fails, and the capture with it.
//! The first batch of an engine is the one that is captured, also when a changed model is loaded
//! beside the model in use.

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static LOCK: RwLock<()> = RwLock::new(());

/// Taken for a run that may capture a graph: no other thread uses the GPU until it is dropped.
pub fn exclusive() -> RwLockWriteGuard<'static, ()> {
    LOCK.write()
}

/// Taken to load or run a graph without a capture. A thread must not take it twice: a waiting
/// [`exclusive`] would deadlock it.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    LOCK.read()
}
