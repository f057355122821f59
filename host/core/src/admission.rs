//! Who may be in work: up to `concurrency` requests of a cage, and of each module as many as it may have instances; up to
//! `queue` waiting, the earliest deadline first. Whoever waits holds nothing, neither a place in the cage nor an instance,
//! so that a slow module's requests take no room from those of other modules. A full queue answers at once; a request that
//! expires while it waits is never run. Used by the dispatcher, and by pools of connections for their places.

mod lines;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use self::lines::{Lines, Turn};
use crate::request::Deadline;

pub struct Admission {
    concurrency: AtomicUsize,
    queue: AtomicUsize,
    in_work: AtomicUsize,
    /// Everybody who waits. Written under the lock of `lines`, read without it.
    waiting: AtomicUsize,
    lines: Mutex<Lines>,
}

/// The bound on the requests and calls of one version of a module that are in work.
pub struct Bulkhead {
    admission: Arc<Admission>,
    max: usize,
    in_work: AtomicUsize,
    /// Nobody enters any more. Written under the lock of the admission's lines.
    closed: AtomicBool,
}

/// Where a request or call comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It needs a place in the cage, too.
    Outside,
    /// It is made for a request that has a place in the cage; to wait for a second one could deadlock.
    Within,
}

/// A place in work; given on to the next waiter when it is dropped.
pub struct Place(Of);

enum Of {
    Admission(Arc<Admission>),
    Bulkhead(Arc<Bulkhead>, Entry),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue was full: so many were waiting.
    Full(usize),
    /// The deadline passed before there was a place.
    Expired,
    /// The same, and it was the module that had no place.
    ModuleBusy,
    /// The bulkhead was closed.
    Closed,
}

impl Admission {
    pub fn new(concurrency: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            concurrency: AtomicUsize::new(concurrency),
            queue: AtomicUsize::new(queue),
            in_work: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            lines: Mutex::default(),
        })
    }

    /// Without limits of its own.
    pub fn unbounded() -> Arc<Self> {
        Self::new(usize::MAX, usize::MAX)
    }

    /// New limits; who is in work or waiting already stays.
    pub fn set_limits(self: &Arc<Self>, concurrency: usize, queue: usize) {
        self.concurrency.store(concurrency, SeqCst);
        self.queue.store(queue, SeqCst);
        self.admit_waiting();
    }

    pub fn in_work(&self) -> usize {
        self.in_work.load(SeqCst)
    }

    /// Without those who wait for an instance within a request.
    pub fn waiting(&self) -> usize {
        self.lines.lock().outside()
    }

    /// # Errors
    /// At once when the queue is full, or at the deadline.
    pub async fn enter(self: &Arc<Self>, deadline: Deadline) -> Result<Place, Refusal> {
        match self.try_enter() {
            Some(place) => Ok(place),
            None => self.wait(None, Entry::Outside, deadline).await,
        }
    }

    /// A place, if one is free now.
    pub fn try_enter(self: &Arc<Self>) -> Option<Place> {
        self.take().then(|| Place(Of::Admission(self.clone())))
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
        entry: Entry,
        deadline: Deadline,
    ) -> Result<Place, Refusal> {
        let (place_tx, place_rx) = oneshot::channel();
        let turn = {
            let mut lines = self.lines.lock();
            if bulkhead.is_some_and(|bulkhead| bulkhead.closed.load(SeqCst)) {
                return Err(Refusal::Closed);
            }
            if entry == Entry::Outside {
                let displaced = lines.make_room(bulkhead, self.queue.load(SeqCst))?;
                self.waiting.fetch_sub(usize::from(displaced), SeqCst);
            }
            self.waiting.fetch_add(1, SeqCst);
            lines.add(bulkhead, entry, deadline, place_tx)
        };
        let _waiting = Waiting { admission: self, bulkhead, entry, turn };
        // A place may have become free between the first look and the entry into the line.
        self.admit_waiting();
        match timeout_at(deadline.instant(), place_rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) if bulkhead.is_some_and(|bulkhead| !bulkhead.has_room()) => Err(Refusal::ModuleBusy),
            Ok(Err(_)) | Err(_) => Err(Refusal::Expired),
        }
    }

    /// After a place was given back.
    fn gave_back(self: &Arc<Self>) {
        if self.waiting.load(SeqCst) > 0 {
            self.admit_waiting();
        }
    }

    /// Gives free places to waiters, the earliest deadline first.
    fn admit_waiting(self: &Arc<Self>) {
        while self.waiting.load(SeqCst) > 0 {
            let mut lines = self.lines.lock();
            let expired = lines.remove_expired();
            self.waiting.fetch_sub(expired, SeqCst);
            let Some((bulkhead, entry, turn)) = lines.next(self.has_room()) else { return };
            // Somebody who has just come may have been faster: then there is less room, and another look.
            let Some(place) = self.place_for_waiter(bulkhead.as_ref(), entry) else { continue };
            let waiter = lines.remove(bulkhead.as_ref(), entry, turn);
            self.waiting.fetch_sub(usize::from(waiter.is_some()), SeqCst);
            drop(lines);
            // One that has just left gives the place back by dropping it, which comes here again for the next.
            if let Some(waiter) = waiter {
                let _ = waiter.send(Ok(place));
            }
        }
    }

    /// Under the lock of the lines: whoever fails meanwhile because of a place that is taken here for a moment enters a line
    /// after this, and looks again.
    fn place_for_waiter(self: &Arc<Self>, bulkhead: Option<&Arc<Bulkhead>>, entry: Entry) -> Option<Place> {
        let Some(bulkhead) = bulkhead else { return self.try_enter() };
        let place = bulkhead.take_both(entry);
        place.then(|| Place(Of::Bulkhead(bulkhead.clone(), entry)))
    }
}

impl Bulkhead {
    pub fn new(admission: Arc<Admission>, max: usize) -> Arc<Self> {
        Arc::new(Self { admission, max, in_work: AtomicUsize::new(0), closed: AtomicBool::new(false) })
    }

    /// # Errors
    /// At once when the cage's queue is full or this is closed, or at the deadline.
    pub async fn enter(self: &Arc<Self>, entry: Entry, deadline: Deadline) -> Result<Place, Refusal> {
        if let Some(place) = self.try_enter(entry) {
            // Whoever closes it does so before the last place is given back: a place that was had since is no use.
            return if self.closed.load(SeqCst) { Err(Refusal::Closed) } else { Ok(place) };
        }
        self.admission.wait(Some(self), entry, deadline).await
    }

    /// A place, if one is free now, both here and in the cage.
    fn try_enter(self: &Arc<Self>, entry: Entry) -> Option<Place> {
        if self.take_both(entry) {
            return Some(Place(Of::Bulkhead(self.clone(), entry)));
        }
        // A place may have been taken for a moment, and somebody may have looked just then and found none.
        self.admission.gave_back();
        None
    }

    /// Takes a place here, and one in the cage for those from outside; or neither.
    fn take_both(&self, entry: Entry) -> bool {
        if !take(&self.in_work, self.max) {
            return false;
        }
        if entry == Entry::Within || self.admission.take() {
            return true;
        }
        self.in_work.fetch_sub(1, SeqCst);
        false
    }

    fn has_room(&self) -> bool {
        self.in_work.load(SeqCst) < self.max
    }

    /// Nobody enters from now on; who waits is told so.
    pub fn close(self: &Arc<Self>) {
        let mut lines = self.admission.lines.lock();
        self.closed.store(true, SeqCst);
        let waiters = lines.clear(self);
        self.admission.waiting.fetch_sub(waiters.len(), SeqCst);
        drop(lines);
        for waiter in waiters {
            // One that has just left needs no answer.
            let _ = waiter.send(Err(Refusal::Closed));
        }
    }
}

/// One more, unless there are `max`.
fn take(in_work: &AtomicUsize, max: usize) -> bool {
    in_work.fetch_update(SeqCst, SeqCst, |in_work| (in_work < max).then_some(in_work + 1)).is_ok()
}

impl Drop for Place {
    fn drop(&mut self) {
        let admission = match &self.0 {
            Of::Admission(admission) => admission,
            Of::Bulkhead(bulkhead, _) => {
                bulkhead.in_work.fetch_sub(1, SeqCst);
                &bulkhead.admission
            }
        };
        if !matches!(self.0, Of::Bulkhead(_, Entry::Within)) {
            admission.in_work.fetch_sub(1, SeqCst);
        }
        admission.gave_back();
    }
}

/// Takes a waiter out of its line, however it ends.
struct Waiting<'a> {
    admission: &'a Admission,
    bulkhead: Option<&'a Arc<Bulkhead>>,
    entry: Entry,
    turn: Turn,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut lines = self.admission.lines.lock();
        if lines.remove(self.bulkhead, self.entry, self.turn).is_some() {
            self.admission.waiting.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
