//! Threads and tasks whose failure, panics included, ends the run.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use crate::error::{Error, ErrorKind, Result};
use crate::worker::run::Run;

/// Resolves when the thread has ended.
pub type ThreadHandle = oneshot::Receiver<()>;

/// Runs `work` on a thread of its own; an error or a panic ends the run.
pub fn spawn_thread(
    name: &'static str,
    run: &Arc<Run>,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<ThreadHandle> {
    let (ended, end) = oneshot::channel();
    let run = Arc::clone(run);
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => run.fail(error),
                Err(_) => run.fail(panicked(name)),
            }
            // Nobody waits any more when the run itself was dropped.
            let _ = ended.send(());
        })
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "can't start a thread")
                .with_context("name", name)
                .with_source(error)
        })?;
    Ok(end)
}

/// Runs a stage as a task; a panic ends the run.
pub fn spawn_task(
    name: &'static str,
    run: &Arc<Run>,
    stage: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let run = Arc::clone(run);
    tokio::spawn(async move {
        if AssertUnwindSafe(stage).catch_unwind().await.is_err() {
            run.fail(panicked(name));
        }
    })
}

/// A task that panicked would leave its item without an answer, and the offsets stuck: it ends the
/// run.
pub fn check_task(run: &Run, ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        run.fail(panicked("fetch or decode"));
    }
}

fn panicked(stage: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stage panicked").with_context("stage", stage)
}
