//! The writing thread takes all pending writes, does them one after the other, and commits them together.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::access::{CommitHook, Writer};
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use super::store_file::{StoreFile, catch_library_panic};
use wasmcage_core::request::Deadline;
use wasmcage_core::task;

/// Writes that may be queued for the thread; the callers of more wait for a place in the queue, up to their deadline.
const QUEUE_MAX: usize = 4_096;
/// A commit takes at most so many writes.
const GROUP_JOBS_MAX: usize = 4_096;
/// A commit takes no further write once the writes before it have written so many bytes.
const GROUP_BYTES_MAX: usize = 64 << 20;
/// A group waits for the callers that have just been answered. It waits for this fraction of the last commit's duration.
const WAIT_SHARE: u32 = 8;
/// A group waits at most so long.
const WAIT_MAX: Duration = Duration::from_millis(1);
/// While it waits, it polls its queue this often.
const WAIT_POLL_INTERVAL: Duration = Duration::from_micros(50);

pub(super) type Jobs = mpsc::Sender<Box<dyn CommitJob>>;

/// A write in the queue of the thread.
pub(super) trait CommitJob: Send {
    /// Returns whether its caller still waits for it. If not, the write is not done.
    fn is_wanted(&self) -> bool;

    /// Does the write. Returns whether it succeeded; otherwise what it has written is dropped.
    fn run(&mut self, writer: &mut Writer<'_>) -> bool;

    /// Answers its caller, after the commit of its group has succeeded or failed.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

/// The work of one call of `Store::write`, and where its result is sent.
pub(super) struct WriteJob<T, W> {
    pub work: Option<W>,
    pub deadline: Deadline,
    pub result: Option<Result<T, StoreError>>,
    pub answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, W> CommitJob for WriteJob<T, W>
where
    T: Send,
    W: FnOnce(&mut Writer<'_>) -> Result<T, StoreError> + Send,
{
    fn is_wanted(&self) -> bool {
        !self.answer.is_closed() && !self.deadline.passed()
    }

    fn run(&mut self, writer: &mut Writer<'_>) -> bool {
        let work = self.work.take();
        let result = catch_library_panic(|| work.map_or(Err(StoreError::TimedOut), |work| work(writer)));
        let succeeded = result.is_ok();
        self.result = Some(result);
        succeeded
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        // If the commit fails, a write that failed gets that error too: it may have failed because of what it saw of its group.
        let Self { result, answer, .. } = *self;
        let result = committed.and_then(|()| result.unwrap_or(Err(StoreError::TimedOut)));
        // Its caller may be gone.
        let _ = answer.send(result);
    }
}

/// Starts the thread. It ends when all senders are dropped and all jobs are done, and closes the file.
pub(super) fn start(file: Arc<StoreFile>) -> std::io::Result<(Jobs, JoinHandle<()>)> {
    let (jobs, mut queue) = mpsc::channel::<Box<dyn CommitJob>>(QUEUE_MAX);
    let thread = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
        let mut wait = BatchWait { expected_writers: 0, until: Instant::now() };
        while let Some(first) = queue.blocking_recv() {
            let commit = || CommitGroup::new(&file).commit(first, &mut queue, &wait);
            wait = task::catch_panic(commit).unwrap_or_else(|panic| {
                // Its callers get `TimedOut`, because their answers' senders are dropped: whether it was written is not known.
                tracing::error!(error = %panic, "a panic dropped a group of writes; later writes are done");
                file.discard(&mut file.lock());
                BatchWait { expected_writers: 0, until: Instant::now() }
            });
        }
        file.discard(&mut file.lock());
    })?;
    Ok((jobs, thread))
}

/// After a commit, the next group waits briefly for the callers just answered to write again, so that they share one fsync.
/// Without that they would become two groups that take turns, and each caller would wait for two commits. A write that comes
/// alone, or after `until`, is committed at once.
struct BatchWait {
    /// The group waits no longer once it has so many jobs.
    expected_writers: usize,
    until: Instant,
}

/// Writes that are committed together.
struct CommitGroup<'a> {
    file: &'a StoreFile,
    overlay: Overlay,
    jobs: Vec<Box<dyn CommitJob>>,
    hooks: Vec<CommitHook>,
}

impl<'a> CommitGroup<'a> {
    fn new(file: &'a StoreFile) -> Self {
        Self { file, overlay: Overlay::default(), jobs: Vec::new(), hooks: Vec::new() }
    }

    /// Commits all queued jobs as one group. Returns how many writers the next group should wait for.
    fn commit(
        mut self,
        first: Box<dyn CommitJob>,
        queue: &mut mpsc::Receiver<Box<dyn CommitJob>>,
        wait: &BatchWait,
    ) -> BatchWait {
        let begun = Instant::now();
        let mut file = self.file.lock();
        let ready = self.file.check_room(&mut file);
        let ready = ready.and_then(|()| self.file.check_name(&mut file));
        let ready = ready.and_then(|()| self.file.open_or_wait(&mut file, || first.is_wanted()));
        let mut next = Some(first);
        while let Some(job) = next {
            if let Ok(base) = &ready {
                self.add(job, base.as_ref());
            } else {
                self.jobs.push(job);
            }
            let full = self.jobs.len() >= GROUP_JOBS_MAX || self.overlay.bytes() >= GROUP_BYTES_MAX;
            next = if full { None } else { self.next(queue, wait) };
        }
        let committed = ready.and_then(|_| match self.overlay.is_empty() {
            true => Ok(()),
            false => self.file.commit(&mut file, &self.overlay),
        });
        drop(file);
        if committed.is_ok() {
            self.hooks.into_iter().for_each(run_hook);
        }
        let expected_writers = self.jobs.len() + queue.len();
        self.jobs.into_iter().for_each(|job| job.answer(committed.clone()));
        let wait = (begun.elapsed() / WAIT_SHARE).min(WAIT_MAX);
        BatchWait { expected_writers, until: Instant::now() + wait }
    }

    fn next(&self, queue: &mut mpsc::Receiver<Box<dyn CommitJob>>, wait: &BatchWait) -> Option<Box<dyn CommitJob>> {
        loop {
            let next = queue.try_recv().ok();
            if next.is_some() || self.jobs.len() >= wait.expected_writers || Instant::now() >= wait.until {
                return next;
            }
            std::thread::sleep(WAIT_POLL_INTERVAL);
        }
    }

    fn add(&mut self, mut job: Box<dyn CommitJob>, base: Option<&Arc<Snapshot>>) {
        if !job.is_wanted() {
            return;
        }
        let mut writer = Writer::new(base.map(Arc::as_ref), &self.overlay, &self.file.queues);
        let succeeded = job.run(&mut writer);
        let (written, hooks) = writer.into_parts();
        if succeeded {
            self.overlay.merge(written);
            self.hooks.extend(hooks);
        }
        self.jobs.push(job);
    }
}

/// Runs a hook after the commit. A panic in it must not end the thread: the commit is done, and other callers wait for theirs.
fn run_hook(hook: CommitHook) {
    if let Err(panic) = task::catch_panic(hook) {
        tracing::error!(error = %panic, "a hook after a commit failed; the commit itself is on the disk");
    }
}
