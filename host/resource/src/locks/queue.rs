//! Named queues in memory: first in, first out, and first served who waited first.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::LockError;
use wasmcage_core::request::{Deadline, Payload};

/// Queues that have entries or are waited for.
const QUEUES_MAX: usize = 1_000;
const ENTRIES_MAX: usize = 10_000;
const BYTES_MAX: usize = 64 << 20;
/// Of all queues together.
const ALL_BYTES_MAX: usize = 256 << 20;
/// Who wait for an entry of one queue.
const WAITERS_MAX: usize = 10_000;
/// What an entry counts besides its own bytes.
const ENTRY_OVERHEAD: usize = 64;

#[derive(Debug, Default)]
pub(super) struct QueueTable(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    queues: HashMap<String, Queue>,
    /// Of all entries.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Payload>,
    bytes: usize,
    /// Only while there are no entries. One whose receiver is closed has given up.
    waiters: VecDeque<oneshot::Sender<Payload>>,
}

/// A place in the line for a queue's next entry. Dropped, it puts back what was handed over and not taken.
struct Waiting<'a> {
    table: &'a QueueTable,
    queue: &'a str,
    handed: oneshot::Receiver<Payload>,
}

impl QueueTable {
    pub(super) fn push(&self, name: &str, entry: Payload) -> Result<usize, LockError> {
        let mut table = self.0.lock();
        let Some(entry) = table.hand_over(name, entry) else { return Ok(0) };
        let size = size_of(&entry);
        table.check_room(name, size)?;
        let queue = table.queue(name)?;
        queue.bytes += size;
        queue.entries.push_back(entry);
        let length = queue.entries.len();
        table.bytes += size;
        Ok(length)
    }

    pub(super) async fn pop(&self, name: &str, deadline: Deadline) -> Result<Option<Payload>, LockError> {
        let mut waiting = {
            let mut table = self.0.lock();
            if let Some(entry) = table.take(name) {
                return Ok(Some(entry));
            }
            if deadline.passed() {
                return Ok(None);
            }
            let (sender, handed) = oneshot::channel();
            let queue = table.queue(name)?;
            if queue.waiters.len() >= WAITERS_MAX {
                return Err(LockError::Invalid(format!("{WAITERS_MAX} wait for queue {name} already")));
            }
            queue.waiters.push_back(sender);
            Waiting { table: self, queue: name, handed }
        };
        let handed = timeout_at(deadline.instant(), &mut waiting.handed).await;
        Ok(handed.ok().and_then(Result::ok).or_else(|| waiting.handed.try_recv().ok()))
    }

    pub(super) fn length(&self, name: &str) -> usize {
        self.0.lock().queues.get(name).map_or(0, |queue| queue.entries.len())
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> (usize, usize) {
        let table = self.0.lock();
        (table.queues.len(), table.bytes)
    }

    #[cfg(test)]
    pub(super) fn waiting(&self, name: &str) -> usize {
        self.0.lock().queues.get(name).map_or(0, |queue| queue.waiters.len())
    }
}

impl Table {
    /// Whether an entry of that size may be added.
    fn check_room(&self, name: &str, size: usize) -> Result<(), LockError> {
        let (entries, bytes) = self.queues.get(name).map_or((0, 0), |queue| (queue.entries.len(), queue.bytes));
        let full = if entries >= ENTRIES_MAX {
            format!("queue {name} is full: it has {ENTRIES_MAX} entries")
        } else if bytes + size > BYTES_MAX {
            format!("queue {name} is full: it may hold {BYTES_MAX} bytes")
        } else if self.bytes + size > ALL_BYTES_MAX {
            format!("the cage's queues in memory are full: together they may hold {ALL_BYTES_MAX} bytes")
        } else {
            return Ok(());
        };
        Err(LockError::Invalid(full))
    }

    /// The queue of that name, made if need be.
    fn queue(&mut self, name: &str) -> Result<&mut Queue, LockError> {
        if !self.queues.contains_key(name) && self.queues.len() >= QUEUES_MAX {
            return Err(LockError::Invalid(format!("{QUEUES_MAX} queues are in use, which is the most there can be")));
        }
        Ok(self.queues.entry(name.to_owned()).or_default())
    }

    /// Gives the entry to who waits longest; returns it when nobody waits.
    fn hand_over(&mut self, name: &str, mut entry: Payload) -> Option<Payload> {
        let Some(queue) = self.queues.get_mut(name) else { return Some(entry) };
        while let Some(waiter) = queue.waiters.pop_front() {
            match waiter.send(entry) {
                Ok(()) => {
                    self.tidy(name);
                    return None;
                }
                Err(returned) => entry = returned,
            }
        }
        self.tidy(name);
        Some(entry)
    }

    fn take(&mut self, name: &str) -> Option<Payload> {
        let queue = self.queues.get_mut(name)?;
        let entry = queue.entries.pop_front()?;
        let size = size_of(&entry);
        queue.bytes -= size;
        self.bytes -= size;
        self.tidy(name);
        Some(entry)
    }

    /// Forgets a queue that has nothing and nobody.
    fn tidy(&mut self, name: &str) {
        if self.queues.get(name).is_some_and(|queue| queue.entries.is_empty() && queue.waiters.is_empty()) {
            self.queues.remove(name);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut table = self.table.0.lock();
        self.handed.close();
        if let Ok(entry) = self.handed.try_recv() {
            // It was the first one, and is so again; the bounds held when it was pushed.
            if let Some(entry) = table.hand_over(self.queue, entry) {
                let size = size_of(&entry);
                table.bytes += size;
                let queue = table.queues.entry(self.queue.to_owned()).or_default();
                queue.bytes += size;
                queue.entries.push_front(entry);
            }
        } else if let Some(queue) = table.queues.get_mut(self.queue) {
            queue.waiters.retain(|waiter| !waiter.is_closed());
            table.tidy(self.queue);
        }
    }
}

fn size_of(entry: &Payload) -> usize {
    let bytes = match entry {
        Payload::Json(json) => json.len(),
        Payload::Bytes(bytes) => bytes.len(),
        // Guests have no way to push such.
        Payload::Values(_) => 0,
    };
    bytes + ENTRY_OVERHEAD
}
