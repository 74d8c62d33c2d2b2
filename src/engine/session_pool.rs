//! Several sessions of one graph that share a batch.
//!
//! On the CPU, several sessions with few threads each waste less time than one session with many
//! threads, which wait for each other at every node. All graphs of an engine use the same threads,
//! so that no more of them run than there are cores.

use std::sync::Arc;

use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

/// The threads that sessions run on, one for each session of a pool.
#[derive(Clone)]
pub struct InferenceThreads {
    count: usize,
    /// None for a single session, which runs on the caller's thread.
    pool: Option<Arc<ThreadPool>>,
}

impl InferenceThreads {
    /// # Errors
    /// `ErrorKind::Internal` if the threads can't be started.
    pub fn start(count: usize) -> Result<Self> {
        if count < 2 {
            return Ok(Self { count: 1, pool: None });
        }
        Ok(Self { count, pool: Some(Arc::new(thread_pool(count)?)) })
    }

    /// One dedicated thread, for a session that must always run on the same thread.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn dedicated() -> Result<Self> {
        Ok(Self { count: 1, pool: Some(Arc::new(thread_pool(1)?)) })
    }
}

/// The sessions of one graph, or of graphs that run one after the other.
pub struct SessionPool<S> {
    sessions: Vec<S>,
    threads: InferenceThreads,
}

impl<S: Send> SessionPool<S> {
    /// Calls `load` once for each of `threads`.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load(threads: InferenceThreads, load: impl FnMut() -> Result<S>) -> Result<Self> {
        let sessions = std::iter::repeat_with(load).take(threads.count).collect::<Result<_>>()?;
        Ok(Self { sessions, threads })
    }

    pub fn size(&self) -> usize {
        self.sessions.len()
    }

    pub fn first(&self) -> Option<&S> {
        self.sessions.first()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.sessions.iter_mut()
    }

    /// Runs `work` once on every session, each on its own thread.
    ///
    /// # Errors
    /// The first that `work` returns.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn for_each(&mut self, work: impl Fn(&mut S) -> Result<()> + Sync) -> Result<()> {
        let Some(threads) = &self.threads.pool else {
            return self.sessions.iter_mut().try_for_each(work);
        };
        let sessions: Vec<Mutex<&mut S>> = self.sessions.iter_mut().map(Mutex::new).collect();
        let results = threads.broadcast(|context| match sessions.get(context.index()) {
            Some(session) => work(&mut session.lock()),
            None => Ok(()),
        });
        results.into_iter().collect()
    }

    /// Gives each of `jobs` to a free session and returns the results in the order of the jobs.
    ///
    /// # Errors
    /// The first that `work` returns.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn map<J: Send, R: Send>(
        &mut self,
        jobs: Vec<J>,
        work: impl Fn(&mut S, J) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let threads = &self.threads.pool;
        let sessions: Vec<Mutex<&mut S>> = self.sessions.iter_mut().map(Mutex::new).collect();
        let run_job = |job| {
            // Each thread has its own session, so the lock is always free. The caller may be a
            // thread of another rayon pool, with an index of that pool.
            let thread = threads.as_ref().and_then(|pool| pool.current_thread_index());
            let session = sessions.get(thread.unwrap_or(0));
            let session =
                session.ok_or_else(|| Error::new(ErrorKind::Internal, "too few sessions"))?;
            work(&mut session.lock(), job)
        };
        match threads {
            Some(pool) => {
                pool.install(|| jobs.into_par_iter().with_max_len(1).map(run_job).collect())
            }
            None => jobs.into_iter().map(run_job).collect(),
        }
    }
}

fn thread_pool(threads: usize) -> Result<ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("engine-{number}"));
    builder.build().map_err(|error| {
        Error::new(ErrorKind::Internal, "can't start the engine's threads").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread::{self, ThreadId};

    use super::*;

    fn pool<S: Send + Default>(threads: usize) -> SessionPool<S> {
        let threads = InferenceThreads::start(threads).unwrap();
        SessionPool::load(threads, || Ok(S::default())).unwrap()
    }

    #[test]
    fn jobs_are_shared_and_their_results_keep_the_order() {
        for threads in [1, 3] {
            let mut counts = pool::<i32>(threads);
            let squares = counts.map((0..100).collect(), |count, job: u64| {
                *count += 1;
                Ok(job * job)
            });
            assert_eq!(squares.unwrap(), (0..100).map(|job| job * job).collect::<Vec<_>>());
            assert_eq!(counts.iter_mut().map(|count| *count).sum::<i32>(), 100);
        }
    }

    #[test]
    fn a_dedicated_thread_is_always_the_same() {
        let dedicated = InferenceThreads::dedicated().unwrap();
        let mut used = SessionPool::load(dedicated, || Ok(HashSet::<ThreadId>::new())).unwrap();
        let note = |used: &mut HashSet<ThreadId>| {
            used.insert(thread::current().id());
            Ok(())
        };
        used.for_each(note).unwrap();
        used.map(vec![(); 3], |used, ()| note(used)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| used.map(vec![(); 3], |used, ()| note(used)).unwrap());
        });
        let used = used.first().unwrap();
        assert_eq!(used.len(), 1);
        assert!(!used.contains(&thread::current().id()));
    }

    #[test]
    fn for_each_runs_once_on_every_session() {
        for threads in [1, 3] {
            let mut counts = pool::<i32>(threads);
            let count_up = |count: &mut i32| {
                *count += 1;
                Ok(())
            };
            counts.for_each(count_up).unwrap();
            assert_eq!(counts.size(), threads);
            assert!(counts.iter_mut().all(|count| *count == 1));
        }
    }

    #[test]
    fn a_single_session_runs_on_the_threads_of_another_pool() {
        let others = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let numbers = others.broadcast(|context| {
            let found = pool::<()>(1).map(vec![context.index()], |(), number| Ok(number));
            found.unwrap()[0]
        });
        assert_eq!(numbers, [0, 1, 2, 3]);
    }

    #[test]
    fn sessions_run_at_the_same_time() {
        let both = Barrier::new(2);
        let met = pool::<()>(2).map(vec![(); 2], |(), ()| {
            both.wait();
            Ok(())
        });
        assert_eq!(met.unwrap().len(), 2);
    }

    #[test]
    fn an_error_of_any_job_is_returned() {
        let failed = pool::<()>(2).map((0..10).collect(), |(), job| match job {
            7 => Err(Error::new(ErrorKind::Runtime, "seven")),
            job => Ok(job),
        });
        assert!(failed.unwrap_err().to_string().contains("seven"));
    }
}
