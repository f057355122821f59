//! The cage's durable data: one file, `state/store.redb`, written by one thread that groups writes into commits. What a
//! write's caller is told is on the disk. `FORMAT.md` beside this file says what is stored how.

mod access;
mod calls;
mod complaint;
#[cfg(test)]
mod crash;
mod error;
mod format;
mod group;
mod medium;
mod opened;
mod overlay;
mod snapshot;
mod space;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::access::{Entry, Reader, Writer};
pub use self::calls::{
    Begun, CallEntry, CallState, CallView, CallsWanted, Counts, DEFAULT_QUEUE, End, Finished, GivenUp, ID_BYTES_MAX,
    InWork, Look, NewCall, PENDING_MAX, QueueView, RetriedQueue, RetriedQueues, Rules, StoredTarget, call_time,
};
pub use self::error::StoreError;
use self::group::{Job, Jobs, Order};
use self::medium::{Directory, Medium};
use self::opened::{Opened, contained};
pub use self::space::Space;
pub use self::state::{Outcome, Page, Range, STEPS_MAX, StateValue, Step, VALUE_BYTES_MAX};
use wasmcage_core::request::Deadline;
pub use wasmcage_core::store_settings::{Quota, StoreSettings};

/// One for a cage. The file is opened when it is first needed or asked for, and made when something is first written.
pub struct Store {
    opened: Arc<Opened>,
    /// Held by who opens the file for others to read.
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
    /// `directory` holds the file.
    pub fn new(cage: &str, directory: &Path, settings: StoreSettings) -> Self {
        Self::on(Box::new(Directory::new(directory)), settings, cage.to_owned())
    }

    fn on(medium: Box<dyn Medium>, settings: StoreSettings, cage: String) -> Self {
        Self {
            opened: Arc::new(Opened::new(medium, settings, cage)),
            opening: Arc::default(),
            thread: Mutex::default(),
        }
    }

    /// Queues of retried calls, as far as they are worked off.
    pub fn retried_queues(&self) -> &RetriedQueues {
        &self.opened.queues
    }

    /// Settings hold from the next write on.
    pub fn set(&self, settings: StoreSettings) {
        self.opened.set(settings);
    }

    /// Resolves when the file is open, cannot be opened, or is not there. After a crash a large file takes its time, and so
    /// does compacting it: whoever must not hold up its thread waits here before it reads. Once begun, opening goes on when
    /// nobody waits any more.
    pub async fn ready(&self) {
        if !self.opened.is_closed() {
            return;
        }
        let turn = self.opening.clone().lock_owned().await;
        if !self.opened.is_closed() {
            return;
        }
        let opened = self.opened.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // What is wrong is told to the log, and again to who reads.
            let _ = opened.open_patiently(&mut opened.lock(), || true);
        });
        let _ = opening.await;
    }

    /// Whether a read waits for no disk: the whole file has room in the memory that the store keeps for it.
    pub fn fits_in_memory(&self) -> bool {
        self.opened.fits_in_memory()
    }

    /// Reads where waiting for the disk holds up no lane: here while the store fits in memory, else on a thread that may wait.
    ///
    /// # Errors
    /// Those of `work`, whose future may be dropped: the read then goes on to its end, unheard.
    pub async fn aside<T: Send + 'static>(
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

    /// Waits for a file that is being opened or compacted for a second at most.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read<T>(&self, work: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let snapshot = self.opened.snapshot()?;
        contained(|| work(&Reader { snapshot: snapshot.as_deref() }))
    }

    /// Has the writing thread do `work`, and waits until it is on the disk.
    ///
    /// # Errors
    /// That of `work`, after which nothing of it is done; `Unavailable`; `TimedOut`, after which it may be done or not.
    pub async fn write<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let jobs = self.jobs()?;
        let (answer, answered) = oneshot::channel();
        let order: Box<dyn Job> = Box::new(Order { work: Some(work), deadline, result: None, answer });
        let done = async {
            jobs.send(order).await.map_err(|_| self.opened.stopping())?;
            // It is dropped when its deadline has passed.
            answered.await.unwrap_or(Err(StoreError::TimedOut))
        };
        match tokio::time::timeout_at(deadline.instant(), done).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::TimedOut),
        }
    }

    /// Makes the file as small as it can be; reads and writes wait meanwhile, reads for a second and then fail. Bytes of the
    /// file before and after.
    ///
    /// # Errors
    /// `Unavailable`; the file is as it was.
    pub async fn compact(&self, deadline: Deadline) -> Result<(u64, u64), StoreError> {
        let opened = self.opened.clone();
        let compacted = tokio::task::spawn_blocking(move || opened.compact(deadline.left()));
        compacted.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    /// Sees whether the file that is open still has its name, and opens the one that has it instead. To be called once a second,
    /// where a disk may hold up the thread: reads do not look for themselves, writes do.
    pub fn look_after(&self) {
        self.opened.look_after();
    }

    /// Finishes the writes that wait, and closes the file. Nothing is read or written afterwards.
    pub fn close(&self) {
        let thread = std::mem::replace(&mut *self.thread.lock(), Thread::Ended);
        self.opened.end();
        if let Thread::Running(jobs, thread) = thread {
            drop(jobs);
            // The last owner of the store may be a write; the thread closes the file itself.
            if thread.thread().id() == std::thread::current().id() {
                return;
            }
            let _ = thread.join();
        }
        self.opened.close();
    }

    fn jobs(&self) -> Result<Jobs, StoreError> {
        let mut thread = self.thread.lock();
        match &*thread {
            Thread::Running(jobs, _) => return Ok(jobs.clone()),
            Thread::Ended => return Err(self.opened.stopping()),
            Thread::NotNeeded => {}
        }
        let (jobs, handle) = group::start(self.opened.clone()).map_err(error::failed)?;
        *thread = Thread::Running(jobs.clone(), handle);
        Ok(jobs)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}
