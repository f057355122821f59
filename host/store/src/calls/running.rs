//! State of queues that is not stored: the interface to wake, and the calls that are in work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};

/// The queues of a cage that this process works off, or did.
#[derive(Default)]
pub struct RetriedQueues {
    worked_off: Mutex<BTreeMap<String, Arc<RetriedQueue>>>,
    /// Names of queues that no interface works off and that were logged.
    missing: Mutex<BTreeSet<String>>,
}

/// Dropped dead letters are logged at most this often.
const DISPLACED_INTERVAL: Duration = Duration::from_secs(60);

/// At most so many queues that no interface works off are logged.
const MISSING_MAX: usize = 100;

/// A queue. The interface that works it off holds its `lease`.
#[derive(Default)]
pub struct RetriedQueue {
    changed: Notify,
    in_work: Mutex<BTreeSet<u64>>,
    /// Calls with the number of an attempt whose start may be stored although the attempt never ran.
    unconfirmed: Mutex<BTreeMap<u64, u32>>,
    lease: Arc<tokio::sync::Mutex<()>>,
    resumed: AtomicBool,
    displaced: Mutex<DisplacedCount>,
}

/// Most such attempts that one queue remembers. An older one then counts as an attempt.
const UNCONFIRMED_MAX: usize = 10_000;

/// Counts dead letters that were dropped to make room for others.
#[derive(Default)]
struct DisplacedCount {
    last_reported: Option<Instant>,
    /// Number since then.
    since: u64,
}

/// Marks a call as being in work until it is dropped.
pub struct InWorkGuard {
    queue: Arc<RetriedQueue>,
    sequence: u64,
}

impl RetriedQueues {
    /// Returns the queue of this name. It is created when it is first asked for.
    pub fn get_or_create(&self, name: &str) -> Arc<RetriedQueue> {
        self.worked_off.lock().entry(name.to_owned()).or_default().clone()
    }

    pub fn get(&self, name: &str) -> Option<Arc<RetriedQueue>> {
        self.worked_off.lock().get(name).cloned()
    }

    /// Returns whether to log that no interface works off the queue of this name: true once for each name.
    pub fn should_warn_missing(&self, name: &str) -> bool {
        let mut missing = self.missing.lock();
        missing.len() < MISSING_MAX && missing.insert(name.to_owned())
    }

    /// Wakes the interface that works off the queue of this name, if there is one.
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

    /// Resolves when `wake` was called since the last time.
    pub async fn woken(&self) {
        self.changed.notified().await;
    }

    /// Waits for the right to start calls of this queue, which one task holds at a time.
    pub async fn lease(&self) -> OwnedMutexGuard<()> {
        self.lease.clone().lock_owned().await
    }

    /// Returns whether calls that failed in an earlier process are to be made ready: true for the first caller only.
    pub fn claim_resume(&self) -> bool {
        !self.resumed.swap(true, Ordering::AcqRel)
    }

    /// Counts a dead letter that was dropped. If it is to be logged now, returns how many were dropped since the last time.
    pub fn count_displaced(&self, now: Instant) -> Option<u64> {
        let mut displaced = self.displaced.lock();
        displaced.since += 1;
        if displaced.last_reported.is_some_and(|at| now.saturating_duration_since(at) < DISPLACED_INTERVAL) {
            return None;
        }
        displaced.last_reported = Some(now);
        Some(std::mem::take(&mut displaced.since))
    }

    /// Marks a call as being in work.
    pub fn begin(self: &Arc<Self>, sequence: u64) -> InWorkGuard {
        self.in_work.lock().insert(sequence);
        InWorkGuard { queue: self.clone(), sequence }
    }

    /// Returns the attempts, by call, whose start may be stored although they never ran.
    pub(crate) fn unconfirmed(&self) -> BTreeMap<u64, u32> {
        self.unconfirmed.lock().clone()
    }

    /// Remembers that the start of an attempt is being written. Until `confirm_begin`, it may be stored without having run.
    pub(crate) fn note_begin(&self, sequence: u64, attempt: u32) {
        let mut unconfirmed = self.unconfirmed.lock();
        if unconfirmed.len() >= UNCONFIRMED_MAX {
            unconfirmed.pop_first();
        }
        unconfirmed.insert(sequence, attempt);
    }

    /// Forgets the attempt again: its start is stored, and it runs.
    pub(crate) fn confirm_begin(&self, sequence: u64) {
        self.unconfirmed.lock().remove(&sequence);
    }

    /// Sequence numbers of the calls that are in work.
    pub fn in_work(&self) -> BTreeSet<u64> {
        self.in_work.lock().clone()
    }

    pub(crate) fn is_in_work(&self, sequence: u64) -> bool {
        self.in_work.lock().contains(&sequence)
    }
}

impl Drop for InWorkGuard {
    fn drop(&mut self) {
        self.queue.in_work.lock().remove(&self.sequence);
        self.queue.wake();
    }
}
