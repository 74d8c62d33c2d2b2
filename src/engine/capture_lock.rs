//! A CUDA graph and the rest of the process. While ONNX Runtime records one, CUDA lets no thread at
//! all take memory of the GPU or copy to it (`cudaStreamCaptureModeGlobal`): the other thread's call
//! and the recording would both fail. So nothing else runs while the first batch of an engine does,
//! that of a changed model beside the one in use above all.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static RECORDING: RwLock<()> = RwLock::new(());

/// For whoever may record: the only one while this is held.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    RECORDING.write().unwrap_or_else(PoisonError::into_inner)
}

/// For whoever loads or runs a graph and records nothing. Not to be asked for twice by one thread.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    RECORDING.read().unwrap_or_else(PoisonError::into_inner)
}
