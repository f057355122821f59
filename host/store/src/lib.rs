//! The cage's durable data: one file, `state/store.redb`, written by one thread that groups writes into commits. A write's
//! caller is answered when its data is on the disk. `FORMAT.md` beside this file describes the format.

mod access;
mod calls;
#[cfg(test)]
mod crash;
mod error;
mod format;
mod group;
mod medium;
mod outage_log;
mod overlay;
mod snapshot;
mod space;
mod state;
mod store_file;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::access::{KeyValue, Reader, Writer};
pub use self::calls::{
    AttemptEnd, CallEntry, CallFilter, CallStart, CallState, CallView, DEFAULT_QUEUE, FinishOutcome, GivenUpCall,
    ID_BYTES_MAX, InWorkGuard, NewCall, QueueRules, QueueStatus, QueueView, RetriedQueue, RetriedQueues, StoredTarget,
    call_time,
};
pub use self::error::StoreError;
use self::group::{CommitJob, Jobs, WriteJob};
use self::medium::{Medium, StoreDirectory};
pub use self::space::Space;
pub use self::state::{Page, Range, STEPS_MAX, StateValue, Step, StepResult, VALUE_BYTES_MAX};
use self::store_file::{StoreFile, catch_library_panic};
use wasmcage_core::request::Deadline;
pub use wasmcage_core::store_settings::{Quota, StoreSettings};

/// The durable data of one cage. The file is opened when it is first needed or asked for, and created by the first write.
pub struct Store {
    file: Arc<StoreFile>,
    /// Held while `ready` opens the file, so that one task does it for all that wait.
    opening: Arc<tokio::sync::Mutex<()>>,
    thread: Mutex<Thread>,
}

/// The writing thread.
#[derive(Default)]
enum Thread {
    #[default]
    NotNeeded,
    Running(Jobs, JoinHandle<()>),
    Ended,
}

impl Store {
    /// Opens nothing yet. The file will be in `directory`.
    pub fn new(cage: &str, directory: &Path, settings: StoreSettings) -> Self {
        Self::on(Box::new(StoreDirectory::new(directory)), settings, cage.to_owned())
    }

    fn on(medium: Box<dyn Medium>, settings: StoreSettings, cage: String) -> Self {
        Self {
            file: Arc::new(StoreFile::new(medium, settings, cage)),
            opening: Arc::default(),
            thread: Mutex::default(),
        }
    }

    /// The queues of retried calls that this process has worked off.
    pub fn retried_queues(&self) -> &RetriedQueues {
        &self.file.queues
    }

    /// Changes the settings, from the next write on.
    pub fn set(&self, settings: StoreSettings) {
        self.file.set(settings);
    }

    /// Resolves when the file is open, cannot be opened, or is not there. After a crash a large file takes its time, and so
    /// does compacting it: whoever must not hold up its thread waits here before it reads. Once begun, opening goes on when
    /// nobody waits any more.
    pub async fn ready(&self) {
        if !self.file.is_closed() {
            return;
        }
        let turn = self.opening.clone().lock_owned().await;
        if !self.file.is_closed() {
            return;
        }
        let file = self.file.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // A failure is logged there, and each read returns it.
            let _ = file.open_or_wait(&mut file.lock(), || true);
        });
        let _ = opening.await;
    }

    /// Returns whether a read never waits for the disk: the whole file fits in the store's cache.
    pub fn fits_in_memory(&self) -> bool {
        self.file.fits_in_memory()
    }

    /// Reads without blocking a lane: on this thread while the store fits in memory, else on a thread that may wait for the disk.
    ///
    /// # Errors
    /// Those of `work`. If this future is dropped, the read goes on to its end, and its result is dropped.
    pub async fn read_without_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.fits_in_memory() {
            return work(self);
        }
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store));
        done.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    /// Runs `work` on what is committed. Waits up to a second for a file that is being opened or compacted.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read<T>(&self, work: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let snapshot = self.file.snapshot()?;
        catch_library_panic(|| work(&Reader { snapshot: snapshot.as_deref() }))
    }

    /// Runs `work` on the writing thread, and waits until its writes are on the disk.
    ///
    /// # Errors
    /// That of `work`, none of whose writes are kept then; `Unavailable`; `TimedOut`, after which it may be done or not.
    pub async fn write<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let jobs = self.jobs()?;
        let (answer, answered) = oneshot::channel();
        let job: Box<dyn CommitJob> = Box::new(WriteJob { work: Some(work), deadline, result: None, answer });
        let done = async {
            jobs.send(job).await.map_err(|_| self.file.stopping_error())?;
            // The thread drops a job whose deadline has passed.
            answered.await.unwrap_or(Err(StoreError::TimedOut))
        };
        match tokio::time::timeout_at(deadline.instant(), done).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::TimedOut),
        }
    }

    /// Makes the file as small as it can be, and returns its bytes before and after. Meanwhile writes wait, and so do reads,
    /// which fail after a second.
    ///
    /// # Errors
    /// `Unavailable`; the content of the file is unchanged.
    pub async fn compact(&self, deadline: Deadline) -> Result<(u64, u64), StoreError> {
        let file = self.file.clone();
        let compacted = tokio::task::spawn_blocking(move || file.compact(deadline.left()));
        compacted.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    /// Checks that the open file still has its name, and if not, opens the file that has the name now. To be called once a
    /// second, on a thread that may wait for a disk: writes check this themselves, reads do not.
    pub fn check_file(&self) {
        self.file.check_file();
    }

    /// Finishes the pending writes and closes the file. Reads and writes fail from then on.
    pub fn close(&self) {
        let thread = std::mem::replace(&mut *self.thread.lock(), Thread::Ended);
        self.file.stop_waiting();
        if let Thread::Running(jobs, thread) = thread {
            drop(jobs);
            // The last owner of the store may be a write, which runs on that thread; it then closes the file itself.
            if thread.thread().id() == std::thread::current().id() {
                return;
            }
            let _ = thread.join();
        }
        self.file.close();
    }

    fn jobs(&self) -> Result<Jobs, StoreError> {
        let mut thread = self.thread.lock();
        match &*thread {
            Thread::Running(jobs, _) => return Ok(jobs.clone()),
            Thread::Ended => return Err(self.file.stopping_error()),
            Thread::NotNeeded => {}
        }
        let (jobs, handle) = group::start(self.file.clone()).map_err(error::failed)?;
        *thread = Thread::Running(jobs.clone(), handle);
        Ok(jobs)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}
