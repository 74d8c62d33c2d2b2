//! Work shared by the instances of a graph. On the CPU, several sessions with few threads each waste
//! less than one with many, whose threads wait for each other at every node; and one pool for all
//! graphs has as many threads as can run.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::error::{Error, ErrorKind, Result};

/// The threads that the instances work on, one for each.
#[derive(Clone)]
pub struct Threads {
    count: usize,
    /// None for a single instance, which works on its caller's thread.
    pool: Option<Arc<ThreadPool>>,
}

impl Threads {
    /// # Errors
    /// `ErrorKind::Internal` if they can't be started.
    pub fn start(count: usize) -> Result<Self> {
        if count < 2 {
            return Ok(Self { count: 1, pool: None });
        }
        Ok(Self { count, pool: Some(Arc::new(pool(count)?)) })
    }

    /// One thread that is nobody else's, for an instance that must always work on the same one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn one_apart() -> Result<Self> {
        Ok(Self { count: 1, pool: Some(Arc::new(pool(1)?)) })
    }

    /// `count` of what `load` makes.
    pub fn instances<I>(&self, load: impl FnMut() -> Result<I>) -> Result<Vec<I>> {
        std::iter::repeat_with(load).take(self.count).collect()
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Has every instance do `work`, each on its thread.
    ///
    /// # Errors
    /// One that `work` returns.
    ///
    /// # Panics
    /// If `work` does.
    pub fn each<I: Send>(
        &self,
        instances: &mut [I],
        work: impl Fn(&mut I) -> Result<()> + Sync,
    ) -> Result<()> {
        let Some(pool) = &self.pool else {
            return instances.iter_mut().try_for_each(work);
        };
        let instances: Vec<Mutex<&mut I>> = instances.iter_mut().map(Mutex::new).collect();
        let done = pool.broadcast(|context| match instances.get(context.index()) {
            Some(own) => work(&mut own.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Ok(()),
        });
        done.into_iter().collect()
    }

    /// Gives each of `jobs` to an instance that is free; the results in the order of the jobs.
    ///
    /// # Errors
    /// One that `work` returns.
    ///
    /// # Panics
    /// If `work` does.
    pub fn share<I: Send, J: Send, R: Send>(
        &self,
        instances: &mut [I],
        jobs: Vec<J>,
        work: impl Fn(&mut I, J) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let instances: Vec<Mutex<&mut I>> = instances.iter_mut().map(Mutex::new).collect();
        let one = |job| {
            // Each thread has its own: nobody waits for the lock. The caller may be a thread of
            // some other pool, which numbers differently.
            let thread = self.pool.as_ref().and_then(|pool| pool.current_thread_index());
            let own = instances.get(thread.unwrap_or(0));
            let own = own.ok_or_else(|| Error::new(ErrorKind::Internal, "too few instances"))?;
            work(&mut own.lock().unwrap_or_else(PoisonError::into_inner), job)
        };
        match &self.pool {
            Some(pool) => pool.install(|| jobs.into_par_iter().with_max_len(1).map(one).collect()),
            None => jobs.into_iter().map(one).collect(),
        }
    }
}

fn pool(threads: usize) -> Result<ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("engine-{number}"));
    builder.build().map_err(|error| {
        Error::new(ErrorKind::Internal, "can't start the engine's threads").because(error)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn jobs_are_shared_and_their_results_keep_the_order() {
        for threads in [1, 3] {
            let threads = Threads::start(threads).unwrap();
            let mut counts = threads.instances(|| Ok(0)).unwrap();
            let squares = threads.share(&mut counts, (0..100).collect(), |count, job: u64| {
                *count += 1;
                Ok(job * job)
            });
            assert_eq!(squares.unwrap(), (0..100).map(|job| job * job).collect::<Vec<_>>());
            assert_eq!(counts.iter().sum::<i32>(), 100);
        }
    }

    #[test]
    fn an_instance_apart_always_works_on_the_same_thread() {
        let apart = Threads::one_apart().unwrap();
        let mut seen = [std::collections::HashSet::new()];
        let here = std::thread::current().id();
        let note = |seen: &mut std::collections::HashSet<_>| {
            seen.insert(std::thread::current().id());
            Ok(())
        };
        apart.each(&mut seen, note).unwrap();
        apart.share(&mut seen, vec![(); 3], |seen, ()| note(seen)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| apart.share(&mut seen, vec![(); 3], |seen, ()| note(seen)).unwrap());
        });
        assert_eq!(seen[0].len(), 1);
        assert!(!seen[0].contains(&here));
    }

    #[test]
    fn every_instance_has_its_turn() {
        for threads in [1, 3] {
            let threads = Threads::start(threads).unwrap();
            let mut counts = threads.instances(|| Ok(0)).unwrap();
            let count_up = |count: &mut i32| {
                *count += 1;
                Ok(())
            };
            threads.each(&mut counts, count_up).unwrap();
            assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
        }
    }

    #[test]
    fn a_single_instance_works_in_anyones_pool() {
        let threads = Threads::start(1).unwrap();
        let others = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let numbers = others.broadcast(|context| {
            let own = threads.share(&mut [()], vec![context.index()], |(), number| Ok(number));
            own.unwrap()[0]
        });
        assert_eq!(numbers, [0, 1, 2, 3]);
    }

    #[test]
    fn instances_work_at_the_same_time() {
        let both = Barrier::new(2);
        let threads = Threads::start(2).unwrap();
        let met = threads.share(&mut [(), ()], vec![(); 2], |(), ()| {
            both.wait();
            Ok(())
        });
        assert_eq!(met.unwrap().len(), 2);
    }

    #[test]
    fn an_error_of_any_job_is_returned() {
        let threads = Threads::start(2).unwrap();
        let failed = threads.share(&mut [(); 2], (0..10).collect(), |(), job| match job {
            7 => Err(Error::new(ErrorKind::Runtime, "seven")),
            job => Ok(job),
        });
        assert!(failed.unwrap_err().to_string().contains("seven"));
    }
}
