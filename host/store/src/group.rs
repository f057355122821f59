//! The writing thread: takes all writes that wait, does them one after the other, and commits them together.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::access::{Afterwards, Writer};
use super::opened::{Opened, contained};
use super::overlay::Overlay;
use super::snapshot::Snapshot;
use wasmcage_core::request::Deadline;
use wasmcage_core::task;

/// Writes that may wait for the thread; the callers of more wait for a place, up to their deadline.
const WAITING_MAX: usize = 4_096;
/// Writes, and bytes that they write, of one commit.
const GROUP_MAX: usize = 4_096;
const GROUP_BYTES_MAX: usize = 64 << 20;
/// A group waits so long for those whose answers have just gone out: this part of the commit before it, and not longer.
const COMPANY_SHARE: u32 = 8;
const COMPANY_PATIENCE_MAX: Duration = Duration::from_millis(1);
/// Between two looks whether they have come.
const COMPANY_INTERVAL: Duration = Duration::from_micros(50);

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
        let mut company = Company { expected: 0, until: Instant::now() };
        while let Some(first) = waiting.blocking_recv() {
            let perform = || Group::new(&opened).perform(first, &mut waiting, &company);
            company = task::caught(perform).unwrap_or_else(|panic| {
                // The callers of that group are told that it may have been written or not.
                tracing::error!(error = %panic, "a group of writes was dropped; the next ones are done");
                opened.forget(&mut opened.lock());
                Company { expected: 0, until: Instant::now() }
            });
        }
        opened.forget(&mut opened.lock());
    })?;
    Ok((jobs, thread))
}

/// Callers that write again as soon as they are answered would otherwise be two groups that take turns, each waiting for two
/// commits. A write that comes alone, or later, finds nobody to wait for.
struct Company {
    expected: usize,
    until: Instant,
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

    /// Does what waits. Whom the next group is to wait for.
    fn perform(
        mut self,
        first: Box<dyn Job>,
        waiting: &mut mpsc::Receiver<Box<dyn Job>>,
        company: &Company,
    ) -> Company {
        let begun = Instant::now();
        let mut file = self.opened.lock();
        let ready = self.opened.check_room(&mut file);
        let ready = ready.and_then(|()| self.opened.check_place(&mut file));
        let ready = ready.and_then(|()| self.opened.open_patiently(&mut file, || first.wanted()));
        let mut next = Some(first);
        while let Some(job) = next {
            if let Ok(base) = &ready {
                self.add(job, base.as_ref());
            } else {
                self.jobs.push(job);
            }
            let full = self.jobs.len() >= GROUP_MAX || self.overlay.bytes() >= GROUP_BYTES_MAX;
            next = if full { None } else { self.next(waiting, company) };
        }
        let committed = ready.and_then(|_| match self.overlay.is_empty() {
            true => Ok(()),
            false => self.opened.commit(&mut file, &self.overlay),
        });
        drop(file);
        if committed.is_ok() {
            self.afterwards.into_iter().for_each(run_hook);
        }
        let expected = self.jobs.len() + waiting.len();
        self.jobs.into_iter().for_each(|job| job.answer(committed.clone()));
        let patience = (begun.elapsed() / COMPANY_SHARE).min(COMPANY_PATIENCE_MAX);
        Company { expected, until: Instant::now() + patience }
    }

    fn next(&self, waiting: &mut mpsc::Receiver<Box<dyn Job>>, company: &Company) -> Option<Box<dyn Job>> {
        loop {
            let next = waiting.try_recv().ok();
            if next.is_some() || self.jobs.len() >= company.expected || Instant::now() >= company.until {
                return next;
            }
            std::thread::sleep(COMPANY_INTERVAL);
        }
    }

    fn add(&mut self, mut job: Box<dyn Job>, base: Option<&Arc<Snapshot>>) {
        if !job.wanted() {
            return;
        }
        let mut writer = Writer::new(base.map(Arc::as_ref), &self.overlay, &self.opened.queues);
        let kept = job.work(&mut writer);
        let (written, afterwards) = writer.into_parts();
        if kept {
            self.overlay.merge(written);
            self.afterwards.extend(afterwards);
        }
        self.jobs.push(job);
    }
}

/// What follows a commit must not end the thread: the commit is made, and others wait for theirs.
fn run_hook(hook: Afterwards) {
    if let Err(panic) = task::caught(hook) {
        tracing::error!(error = %panic, "what was to follow a commit failed; the commit itself is on the disk");
    }
}
