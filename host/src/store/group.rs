//! The writing thread: takes all writes that wait, does them one after the other, and commits them together.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::access::{Afterwards, Writer};
use super::opened::{Opened, contained};
use super::overlay::Overlay;
use super::{StoreError, snapshot::Snapshot};
use crate::request::Deadline;

/// Writes that may wait for the thread; the callers of more wait for a place, up to their deadline.
const WAITING_MAX: usize = 4_096;
/// Writes, and bytes that they write, of one commit.
const GROUP_MAX: usize = 4_096;
const GROUP_BYTES_MAX: usize = 64 << 20;

pub(super) type Jobs = mpsc::Sender<Box<dyn Job>>;

/// A write that waits.
pub(super) trait Job: Send {
    /// False: nobody waits for it any more, and nothing of it was done.
    fn wanted(&self) -> bool;

    /// Whether what it has written is to be kept.
    fn work(&mut self, writer: &mut Writer<'_>) -> bool;

    /// Tells its caller, now that all of the group is on the disk or is not.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

pub(super) struct Order<T, W> {
    pub work: Option<W>,
    pub deadline: Deadline,
    pub result: Option<Result<T, StoreError>>,
    pub answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, W> Job for Order<T, W>
where
    T: Send,
    W: FnOnce(&mut Writer<'_>) -> Result<T, StoreError> + Send,
{
    fn wanted(&self) -> bool {
        !self.answer.is_closed() && !self.deadline.passed()
    }

    fn work(&mut self, writer: &mut Writer<'_>) -> bool {
        let work = self.work.take();
        let result = contained(|| work.map_or(Err(StoreError::TimedOut), |work| work(writer)));
        let kept = result.is_ok();
        self.result = Some(result);
        kept
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        // What a failed write has seen of others in its group counts as little as what it would have written.
        let Self { result, answer, .. } = *self;
        let result = committed.and_then(|()| result.unwrap_or(Err(StoreError::TimedOut)));
        // Its caller may be gone.
        let _ = answer.send(result);
    }
}

/// Starts the thread. It ends when there is no sender any more and everything is done, and leaves the file closed.
pub(super) fn start(opened: Arc<Opened>) -> std::io::Result<(Jobs, JoinHandle<()>)> {
    let (jobs, mut waiting) = mpsc::channel::<Box<dyn Job>>(WAITING_MAX);
    let thread = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
        while let Some(first) = waiting.blocking_recv() {
            Group::new(&opened).perform(first, &mut waiting);
        }
        opened.forget(&mut opened.lock());
    })?;
    Ok((jobs, thread))
}

struct Group<'a> {
    opened: &'a Opened,
    overlay: Overlay,
    jobs: Vec<Box<dyn Job>>,
    afterwards: Vec<Afterwards>,
}

impl<'a> Group<'a> {
    fn new(opened: &'a Opened) -> Self {
        Self { opened, overlay: Overlay::default(), jobs: Vec::new(), afterwards: Vec::new() }
    }

    fn perform(mut self, first: Box<dyn Job>, waiting: &mut mpsc::Receiver<Box<dyn Job>>) {
        let mut file = self.opened.lock();
        let ready = self.opened.check_room(&mut file).and_then(|()| self.opened.open(&mut file, false));
        let mut next = Some(first);
        while let Some(job) = next {
            if let Ok(base) = &ready {
                self.add(job, base.as_ref());
            } else {
                self.jobs.push(job);
            }
            let full = self.jobs.len() >= GROUP_MAX || self.overlay.bytes() >= GROUP_BYTES_MAX;
            next = if full { None } else { waiting.try_recv().ok() };
        }
        let committed = ready.and_then(|_| match self.overlay.is_empty() {
            true => Ok(()),
            false => self.opened.commit(&mut file, &self.overlay),
        });
        drop(file);
        if committed.is_ok() {
            self.afterwards.into_iter().for_each(|work| work());
        }
        self.jobs.into_iter().for_each(|job| job.answer(committed.clone()));
    }

    fn add(&mut self, mut job: Box<dyn Job>, base: Option<&Arc<Snapshot>>) {
        if !job.wanted() {
            return;
        }
        let mut writer = Writer::new(base.map(Arc::as_ref), &self.overlay);
        let kept = job.work(&mut writer);
        let (written, afterwards) = writer.into_parts();
        if kept {
            self.overlay.merge(written);
            self.afterwards.extend(afterwards);
        }
        self.jobs.push(job);
    }
}
