//! Locks and queues in memory that the modules of a cage share. They outlive the versions of modules and end with the
//! cage's process. A lock that nobody holds or waits for takes no memory, nor does an empty queue.

mod lock;
mod queue;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::lock::LockTable;
pub use self::lock::{LockGuard, Mode};
use self::queue::QueueTable;
use wasmcage_core::request::{Deadline, Payload, RequestId};

/// Most characters of a lock's or queue's name, which may be any but control characters.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// Why a lock was not acquired, or an entry not pushed or popped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The name is invalid, or a limit is exceeded.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    TimedOut(String),
    /// The request holds the lock that it would wait for.
    #[error("{0}")]
    WouldDeadlock(String),
}

/// The locks and queues of a cage.
#[derive(Debug, Default)]
pub struct Locks {
    locks: Arc<LockTable>,
    queues: QueueTable,
}

impl Locks {
    /// Waits for a lock, which is held until the guard is dropped. First come, first served: a reader does not overtake a
    /// waiting writer, unless its request reads already.
    ///
    /// # Errors
    /// See the kinds. `WouldDeadlock` when `request` holds the lock and one of the two modes is `Write`.
    pub async fn acquire(
        &self,
        name: &str,
        mode: Mode,
        request: RequestId,
        deadline: Deadline,
    ) -> Result<LockGuard, LockError> {
        check_name(name)?;
        lock::acquire(&self.locks, name, mode, request, deadline).await
    }

    /// Adds an entry at the end of a queue. Returns the queue's new length; 0 if a waiter took the entry.
    ///
    /// # Errors
    /// `Invalid` at a limit.
    pub fn push(&self, queue: &str, entry: Payload) -> Result<usize, LockError> {
        check_name(queue)?;
        self.queues.push(queue, entry)
    }

    /// Takes the first entry of a queue, or waits for one; none at the deadline. First come, first served. If the future is
    /// dropped, no entry is lost.
    ///
    /// # Errors
    /// `Invalid` at a limit.
    pub async fn pop(&self, queue: &str, deadline: Deadline) -> Result<Option<Payload>, LockError> {
        check_name(queue)?;
        self.queues.pop(queue, deadline).await
    }

    /// Returns the number of entries of a queue.
    pub fn length(&self, queue: &str) -> usize {
        self.queues.length(queue)
    }
}

fn check_name(name: &str) -> Result<(), LockError> {
    // A name that has more bytes has more characters, and need not be counted.
    let short = name.len() <= NAME_CHARACTERS_MAX * 4 && name.chars().count() <= NAME_CHARACTERS_MAX;
    if short && !name.is_empty() && !name.contains(char::is_control) {
        return Ok(());
    }
    let rule = format!("a lock's or queue's name is 1 to {NAME_CHARACTERS_MAX} characters, none of them a control one");
    Err(LockError::Invalid(rule))
}
