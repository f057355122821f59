//! What is known of queues while the process runs: whom to wake, which calls are being made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};

/// The queues of a cage that are worked off, or were.
#[derive(Default)]
pub struct RetriedQueues {
    worked_off: Mutex<BTreeMap<String, Arc<RetriedQueue>>>,
    /// Names of queues that nobody works off, as far as they were told.
    missing: Mutex<BTreeSet<String>>,
}

/// That dead letters are dropped is told again after so long.
const DISPLACED_INTERVAL: Duration = Duration::from_secs(60);

/// So many queues that nobody works off are told.
const MISSING_MAX: usize = 100;

/// One of them. Whoever works it off holds its `lease`.
#[derive(Default)]
pub struct RetriedQueue {
    changed: Notify,
    in_work: Mutex<BTreeSet<u64>>,
    /// Calls whose next attempt may be on record as begun although it never ran, with its number.
    unrun: Mutex<BTreeMap<u64, u32>>,
    lease: Arc<tokio::sync::Mutex<()>>,
    resumed: AtomicBool,
    displaced: Mutex<Displaced>,
}

/// Beginnings of attempts in doubt that one queue remembers; an older one then counts as an attempt.
const UNRUN_MAX: usize = 10_000;

/// Dead letters that had to make room for others.
#[derive(Default)]
struct Displaced {
    told: Option<Instant>,
    since: u64,
}

/// A call is being made; dropped when that is over, whatever came of it.
pub struct InWork {
    queue: Arc<RetriedQueue>,
    sequence: u64,
}

impl RetriedQueues {
    /// Made when it is first asked for.
    pub fn get_or_create(&self, name: &str) -> Arc<RetriedQueue> {
        self.worked_off.lock().entry(name.to_owned()).or_default().clone()
    }

    pub fn get(&self, name: &str) -> Option<Arc<RetriedQueue>> {
        self.worked_off.lock().get(name).cloned()
    }

    /// Whether it is to be told that nobody works off the queue of that name: once for a name.
    pub fn warn_of(&self, name: &str) -> bool {
        let mut missing = self.missing.lock();
        missing.len() < MISSING_MAX && missing.insert(name.to_owned())
    }

    /// Something is to be done in the queue of that name; nobody is told when nobody works it off.
    pub fn wake(&self, name: &str) {
        if let Some(queue) = self.get(name) {
            queue.wake();
        }
    }
}

impl RetriedQueue {
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Resolves when it was woken since the last time.
    pub async fn woken(&self) {
        self.changed.notified().await;
    }

    /// The right to begin calls of this queue: one holds it at a time.
    pub async fn lease(&self) -> OwnedMutexGuard<()> {
        self.lease.clone().lock_owned().await
    }

    /// Whether calls of an earlier process have to be looked at; true once.
    pub fn resumes(&self) -> bool {
        !self.resumed.swap(true, Ordering::AcqRel)
    }

    /// A dead letter was dropped to make room. If that is to be told now: how many were since it was told last.
    pub fn displaced(&self, now: Instant) -> Option<u64> {
        let mut displaced = self.displaced.lock();
        displaced.since += 1;
        if displaced.told.is_some_and(|at| now.saturating_duration_since(at) < DISPLACED_INTERVAL) {
            return None;
        }
        displaced.told = Some(now);
        Some(std::mem::take(&mut displaced.since))
    }

    pub fn begin(self: &Arc<Self>, sequence: u64) -> InWork {
        self.in_work.lock().insert(sequence);
        InWork { queue: self.clone(), sequence }
    }

    /// The attempts whose beginning may be on record, though nobody was told so and they never ran.
    pub fn unrun(&self) -> BTreeMap<u64, u32> {
        self.unrun.lock().clone()
    }

    /// An attempt's beginning is being written. Until `runs` is called, it may be on record without having run.
    pub fn may_begin(&self, sequence: u64, attempt: u32) {
        let mut unrun = self.unrun.lock();
        if unrun.len() >= UNRUN_MAX {
            unrun.pop_first();
        }
        unrun.insert(sequence, attempt);
    }

    /// The beginning is known to be on record, and the attempt runs.
    pub fn runs(&self, sequence: u64) {
        self.unrun.lock().remove(&sequence);
    }

    /// Numbers of the calls that are being made.
    pub fn in_work(&self) -> BTreeSet<u64> {
        self.in_work.lock().clone()
    }

    pub fn is_in_work(&self, sequence: u64) -> bool {
        self.in_work.lock().contains(&sequence)
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.queue.in_work.lock().remove(&self.sequence);
        self.queue.wake();
    }
}
