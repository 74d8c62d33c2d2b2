//! Threads and tasks whose failure, panics included, ends the run.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::task::{JoinError, JoinHandle};

use crate::error::{Error, ErrorKind};
use crate::worker::context::Shared;

/// Runs `work` on a thread of its own; an error or a panic ends the run. The receiver hears when
/// the thread is through.
pub fn spawn_thread(
    name: &'static str,
    shared: &Arc<Shared>,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<tokio::sync::oneshot::Receiver<()>, Error> {
    let (through, heard) = tokio::sync::oneshot::channel();
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fail(error),
                Err(_) => shared.fail(panicked(name)),
            }
            // Nobody waits any more when the run itself was dropped.
            let _ = through.send(());
        })
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "can't start a thread")
                .with("name", name)
                .because(error)
        })?;
    Ok(heard)
}

pub fn panicked(stage: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stage panicked").with("stage", stage)
}

/// Runs a stage as a task; a panic ends the run.
pub fn supervise(
    name: &'static str,
    shared: Arc<Shared>,
    stage: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if AssertUnwindSafe(stage).catch_unwind().await.is_err() {
            shared.fail(panicked(name));
        }
    })
}

/// A task that panicked would leave its record without an outcome, and the offsets stuck.
pub fn check(shared: &Shared, ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        shared.fail(panicked("fetch or decode"));
    }
}
