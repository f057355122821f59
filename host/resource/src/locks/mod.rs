//! Locks and queues in memory that the modules of a cage share. They outlive the versions of modules and end with the
//! cage's process; a lock that nobody holds or waits for, and a queue that is empty, takes no room.

mod lock;
mod queue;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::lock::LockTable;
pub use self::lock::{Held, Mode};
use self::queue::QueueTable;
use wasmcage_core::request::{Deadline, Payload, RequestId};

/// In a name of a lock or queue, which may be any but control characters.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// Why there is no lock, or an entry was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// A name that is not allowed, or a bound.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    TimedOut(String),
    /// The request holds what it would wait for.
    #[error("{0}")]
    WouldDeadlock(String),
}

/// One for a cage.
#[derive(Debug, Default)]
pub struct Locks {
    locks: Arc<LockTable>,
    queues: QueueTable,
}

impl Locks {
    /// Waits for a lock, which is held until what is returned is dropped. Who asks first gets it first: a reader does not
    /// pass a writer that waits, unless its request reads already.
    ///
    /// # Errors
    /// See the kinds. `WouldDeadlock` when `request` holds the lock and one of the two modes is `Write`.
    pub async fn acquire(
        &self,
        name: &str,
        mode: Mode,
        request: RequestId,
        deadline: Deadline,
    ) -> Result<Held, LockError> {
        check_name(name)?;
        lock::acquire(&self.locks, name, mode, request, deadline).await
    }

    /// Adds an entry at the end of a queue. Returns the queue's new length, 0 if someone waited for the entry.
    ///
    /// # Errors
    /// `Invalid` at a bound.
    pub fn push(&self, queue: &str, entry: Payload) -> Result<usize, LockError> {
        check_name(queue)?;
        self.queues.push(queue, entry)
    }

    /// Takes the first entry of a queue, or waits for one; none at the deadline. Who asks first gets the first one. When the
    /// future is dropped, nothing is taken.
    ///
    /// # Errors
    /// `Invalid` at a bound.
    pub async fn pop(&self, queue: &str, deadline: Deadline) -> Result<Option<Payload>, LockError> {
        check_name(queue)?;
        self.queues.pop(queue, deadline).await
    }

    /// Entries of a queue.
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
