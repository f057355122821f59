//! Limits how many requests are in work: up to `concurrency` of a cage, and of each module as many as it may have instances.
//! Up to `queue` more wait, the earliest deadline first. A waiting request holds nothing, neither a permit of the cage nor an
//! instance, so that a slow module's requests take no room from those of other modules. When the queue is full, a request
//! fails at once; one that expires while it waits never runs. The dispatcher uses this, and so do pools of connections.

mod wait_queues;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use self::wait_queues::{QueuePosition, WaitQueues};
use crate::request::Deadline;

/// The limits of a cage, or of a pool.
pub struct Admission {
    concurrency: AtomicUsize,
    queue_max: AtomicUsize,
    in_work: AtomicUsize,
    /// All waiters. Written under the lock of `queues`, read without it.
    waiting: AtomicUsize,
    queues: Mutex<WaitQueues>,
}

/// The limit on the requests and calls of one version of a module that are in work.
pub struct Bulkhead {
    admission: Arc<Admission>,
    max: usize,
    in_work: AtomicUsize,
    /// No more permits are given. Written under the lock of the admission's `queues`.
    closed: AtomicBool,
}

/// Whether a request or call needs a permit of the cage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// It comes from outside and needs a permit of the cage, too.
    Outside,
    /// It is made for a request that has a permit of the cage; waiting for a second one could deadlock.
    Within,
}

/// The permission to be in work. When it is dropped, the next waiter gets it.
pub struct Permit(PermitSource);

enum PermitSource {
    Admission(Arc<Admission>),
    Bulkhead(Arc<Bulkhead>, EntryKind),
}

/// Why a request got no permit.
#[derive(Debug, PartialEq, Eq)]
pub enum AdmissionError {
    /// The queue was full: so many requests were waiting.
    Full(usize),
    /// The deadline passed before the cage had a permit.
    Expired,
    /// The deadline passed before the module had a permit.
    ModuleBusy,
    /// The bulkhead was closed.
    Closed,
}

impl Admission {
    pub fn new(concurrency: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            concurrency: AtomicUsize::new(concurrency),
            queue_max: AtomicUsize::new(queue),
            in_work: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queues: Mutex::default(),
        })
    }

    /// An admission without limits.
    pub fn unbounded() -> Arc<Self> {
        Self::new(usize::MAX, usize::MAX)
    }

    /// Sets new limits. Requests that are in work or waiting stay.
    pub fn set_limits(self: &Arc<Self>, concurrency: usize, queue: usize) {
        self.concurrency.store(concurrency, SeqCst);
        self.queue_max.store(queue, SeqCst);
        self.admit_waiting();
    }

    pub fn in_work(&self) -> usize {
        self.in_work.load(SeqCst)
    }

    /// Number of waiting requests; calls that wait within a request are not counted.
    pub fn waiting(&self) -> usize {
        self.queues.lock().outside()
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// At once when the queue is full, or at the deadline.
    pub async fn enter(self: &Arc<Self>, deadline: Deadline) -> Result<Permit, AdmissionError> {
        match self.try_enter() {
            Some(permit) => Ok(permit),
            None => self.wait(None, EntryKind::Outside, deadline).await,
        }
    }

    /// Returns a permit if one is free now.
    pub fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        self.take().then(|| Permit(PermitSource::Admission(self.clone())))
    }

    fn take(&self) -> bool {
        take(&self.in_work, self.concurrency.load(SeqCst))
    }

    fn has_room(&self) -> bool {
        self.in_work.load(SeqCst) < self.concurrency.load(SeqCst)
    }

    async fn wait(
        self: &Arc<Self>,
        bulkhead: Option<&Arc<Bulkhead>>,
        entry: EntryKind,
        deadline: Deadline,
    ) -> Result<Permit, AdmissionError> {
        let (permit_tx, permit_rx) = oneshot::channel();
        let position = {
            let mut queues = self.queues.lock();
            if bulkhead.is_some_and(|bulkhead| bulkhead.closed.load(SeqCst)) {
                return Err(AdmissionError::Closed);
            }
            if entry == EntryKind::Outside {
                let displaced = queues.make_room(bulkhead, self.queue_max.load(SeqCst))?;
                self.waiting.fetch_sub(usize::from(displaced), SeqCst);
            }
            self.waiting.fetch_add(1, SeqCst);
            queues.add(bulkhead, entry, deadline, permit_tx)
        };
        let _waiter = QueuedWaiter { admission: self, bulkhead, entry, position };
        // A permit may have become free before this waiter was in its queue.
        self.admit_waiting();
        match timeout_at(deadline.instant(), permit_rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) if bulkhead.is_some_and(|bulkhead| !bulkhead.has_room()) => {
                Err(AdmissionError::ModuleBusy)
            }
            Ok(Err(_)) | Err(_) => Err(AdmissionError::Expired),
        }
    }

    /// Gives free permits to waiters, the earliest deadline first.
    fn admit_waiting(self: &Arc<Self>) {
        while self.waiting.load(SeqCst) > 0 {
            let mut queues = self.queues.lock();
            let expired = queues.remove_expired();
            self.waiting.fetch_sub(expired, SeqCst);
            let Some((bulkhead, entry, position)) = queues.next(self.has_room()) else { return };
            // A request that has just come may have taken it: then the next waiter is determined anew.
            let Some(permit) = self.permit_for_waiter(bulkhead.as_ref(), entry) else { continue };
            let waiter = queues.remove(bulkhead.as_ref(), entry, position);
            self.waiting.fetch_sub(usize::from(waiter.is_some()), SeqCst);
            drop(queues);
            // A waiter that has just left drops the permit, which calls this again for the next one.
            if let Some(waiter) = waiter {
                let _ = waiter.send(Ok(permit));
            }
        }
    }

    /// Takes a permit for a waiter. The lock of the queues is held: a request that finds no permit because of one that is taken
    /// here for a moment enters a queue after this, and tries again then.
    fn permit_for_waiter(self: &Arc<Self>, bulkhead: Option<&Arc<Bulkhead>>, entry: EntryKind) -> Option<Permit> {
        let Some(bulkhead) = bulkhead else { return self.try_enter() };
        let taken = bulkhead.take_both(entry);
        taken.then(|| Permit(PermitSource::Bulkhead(bulkhead.clone(), entry)))
    }
}

impl Bulkhead {
    pub fn new(admission: Arc<Admission>, max: usize) -> Arc<Self> {
        Arc::new(Self { admission, max, in_work: AtomicUsize::new(0), closed: AtomicBool::new(false) })
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// At once when the cage's queue is full or this bulkhead is closed, or at the deadline.
    pub async fn enter(self: &Arc<Self>, entry: EntryKind, deadline: Deadline) -> Result<Permit, AdmissionError> {
        if let Some(permit) = self.try_enter(entry) {
            // A closed bulkhead may have free permits, and they must not be used.
            return if self.closed.load(SeqCst) { Err(AdmissionError::Closed) } else { Ok(permit) };
        }
        self.admission.wait(Some(self), entry, deadline).await
    }

    /// Returns a permit if one is free now, both here and in the cage.
    fn try_enter(self: &Arc<Self>, entry: EntryKind) -> Option<Permit> {
        if self.take_both(entry) {
            return Some(Permit(PermitSource::Bulkhead(self.clone(), entry)));
        }
        // `take_both` may have taken a permit for a moment, in which another waiter found none.
        self.admission.admit_waiting();
        None
    }

    /// Takes a permit here and, for requests from outside, one of the cage; or neither.
    fn take_both(&self, entry: EntryKind) -> bool {
        if !take(&self.in_work, self.max) {
            return false;
        }
        if entry == EntryKind::Within || self.admission.take() {
            return true;
        }
        self.in_work.fetch_sub(1, SeqCst);
        false
    }

    fn has_room(&self) -> bool {
        self.in_work.load(SeqCst) < self.max
    }

    /// Gives no more permits. Waiters fail with `Closed`.
    pub fn close(self: &Arc<Self>) {
        let mut queues = self.admission.queues.lock();
        self.closed.store(true, SeqCst);
        let waiters = queues.clear(self);
        self.admission.waiting.fetch_sub(waiters.len(), SeqCst);
        drop(queues);
        for waiter in waiters {
            // A waiter that has just left needs no answer.
            let _ = waiter.send(Err(AdmissionError::Closed));
        }
    }
}

/// Counts one more, unless there are `max` already.
fn take(in_work: &AtomicUsize, max: usize) -> bool {
    in_work.fetch_update(SeqCst, SeqCst, |in_work| (in_work < max).then_some(in_work + 1)).is_ok()
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = match &self.0 {
            PermitSource::Admission(admission) => admission,
            PermitSource::Bulkhead(bulkhead, _) => {
                bulkhead.in_work.fetch_sub(1, SeqCst);
                &bulkhead.admission
            }
        };
        if !matches!(self.0, PermitSource::Bulkhead(_, EntryKind::Within)) {
            admission.in_work.fetch_sub(1, SeqCst);
        }
        admission.admit_waiting();
    }
}

/// Removes a waiter from its queue when it is dropped.
struct QueuedWaiter<'a> {
    admission: &'a Admission,
    bulkhead: Option<&'a Arc<Bulkhead>>,
    entry: EntryKind,
    position: QueuePosition,
}

impl Drop for QueuedWaiter<'_> {
    fn drop(&mut self) {
        let mut queues = self.admission.queues.lock();
        if queues.remove(self.bulkhead, self.entry, self.position).is_some() {
            self.admission.waiting.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
