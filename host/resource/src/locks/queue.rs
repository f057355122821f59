//! Named queues in memory: first in, first out, for waiters, too.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::LockError;
use wasmcage_core::request::{Deadline, Payload};

/// Most queues that have entries or waiters.
const QUEUES_MAX: usize = 1_000;
const ENTRIES_MAX: usize = 10_000;
const BYTES_MAX: usize = 64 << 20;
/// Most bytes of all queues together.
const ALL_BYTES_MAX: usize = 256 << 20;
/// Most waiters of one queue.
const WAITERS_MAX: usize = 10_000;
/// Bytes that an entry counts besides its own.
const ENTRY_OVERHEAD: usize = 64;

#[derive(Debug, Default)]
pub(super) struct QueueTable(Mutex<QueueMap>);

#[derive(Debug, Default)]
struct QueueMap {
    queues: HashMap<String, MemoryQueue>,
    /// Bytes of all entries.
    bytes: usize,
}

#[derive(Debug, Default)]
struct MemoryQueue {
    entries: VecDeque<Payload>,
    bytes: usize,
    /// Waiters exist only while there are no entries. One whose receiver is closed has given up.
    waiters: VecDeque<oneshot::Sender<Payload>>,
}

/// A waiter for a queue's next entry. Dropping it puts back an entry that was handed over and not taken.
struct EntryWaiter<'a> {
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
                return Err(LockError::Invalid(format!("queue {name} has {WAITERS_MAX} waiters already")));
            }
            queue.waiters.push_back(sender);
            EntryWaiter { table: self, queue: name, handed }
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

impl QueueMap {
    /// Checks that an entry of this size may be added.
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

    /// Returns the queue of this name, which is created if it does not exist.
    fn queue(&mut self, name: &str) -> Result<&mut MemoryQueue, LockError> {
        if !self.queues.contains_key(name) && self.queues.len() >= QUEUES_MAX {
            return Err(LockError::Invalid(format!("{QUEUES_MAX} queues are in use, which is the most there can be")));
        }
        Ok(self.queues.entry(name.to_owned()).or_default())
    }

    /// Passes the entry to the waiter that has waited longest; returns it if there is none.
    fn hand_over(&mut self, name: &str, mut entry: Payload) -> Option<Payload> {
        let Some(queue) = self.queues.get_mut(name) else { return Some(entry) };
        while let Some(waiter) = queue.waiters.pop_front() {
            match waiter.send(entry) {
                Ok(()) => {
                    self.remove_if_unused(name);
                    return None;
                }
                Err(returned) => entry = returned,
            }
        }
        self.remove_if_unused(name);
        Some(entry)
    }

    fn take(&mut self, name: &str) -> Option<Payload> {
        let queue = self.queues.get_mut(name)?;
        let entry = queue.entries.pop_front()?;
        let size = size_of(&entry);
        queue.bytes -= size;
        self.bytes -= size;
        self.remove_if_unused(name);
        Some(entry)
    }

    /// Removes a queue without entries and waiters.
    fn remove_if_unused(&mut self, name: &str) {
        if self.queues.get(name).is_some_and(|queue| queue.entries.is_empty() && queue.waiters.is_empty()) {
            self.queues.remove(name);
        }
    }
}

impl Drop for EntryWaiter<'_> {
    fn drop(&mut self) {
        let mut table = self.table.0.lock();
        self.handed.close();
        if let Ok(entry) = self.handed.try_recv() {
            // It was the first entry, and is so again. The limits were checked when it was pushed.
            if let Some(entry) = table.hand_over(self.queue, entry) {
                let size = size_of(&entry);
                table.bytes += size;
                let queue = table.queues.entry(self.queue.to_owned()).or_default();
                queue.bytes += size;
                queue.entries.push_front(entry);
            }
        } else if let Some(queue) = table.queues.get_mut(self.queue) {
            queue.waiters.retain(|waiter| !waiter.is_closed());
            table.remove_if_unused(self.queue);
        }
    }
}

fn size_of(entry: &Payload) -> usize {
    let bytes = match entry {
        Payload::Json(json) => json.len(),
        Payload::Bytes(bytes) => bytes.len(),
        // Guests cannot push values.
        Payload::Values(_) => 0,
    };
    bytes + ENTRY_OVERHEAD
}
