//! Locks and queues in memory that the modules of a cage share. They live as long as the cage's process.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use wasmcage_guest::{Result, lock};
//! # fn f() -> Result<()> {
//! let stock = lock::named("stock").timeout(Duration::from_secs(1)).write()?;
//! // Nobody else of this cage is here.
//! drop(stock);
//!
//! lock::queue("jobs").push(&("resize", 7))?;
//! let job: Option<(String, u64)> = lock::queue("jobs").pop(Duration::from_secs(1))?;
//! # Ok(()) }
//! ```

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::imports::wasmcage::cage::lock;
use crate::bindings::imports::wasmcage::cage::types::Payload;

pub use lock::Mode;

/// A lock, by its name of up to 64 characters. It needs no making.
pub fn named(name: &str) -> Lock<'_> {
    Lock { name, timeout: None }
}

/// A queue in memory, by its name of up to 64 characters. It needs no making.
pub fn queue(name: &str) -> Queue<'_> {
    Queue { name }
}

/// A lock that is not held yet. Made by [`named`].
#[derive(Clone, Copy, Debug)]
pub struct Lock<'a> {
    name: &'a str,
    timeout: Option<Duration>,
}

impl Lock<'_> {
    /// Waits for at most so long, and never longer than until the request's deadline.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Waits until no writer holds the lock, or waited for it earlier.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn read(self) -> Result<Held, LockError> {
        self.acquire(Mode::Read)
    }

    /// Waits until nobody holds the lock, or waited for it earlier.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn write(self) -> Result<Held, LockError> {
        self.acquire(Mode::Write)
    }

    fn acquire(self, mode: Mode) -> Result<Held, LockError> {
        Ok(Held(lock::acquire(self.name, mode, self.timeout.map(milliseconds))?))
    }
}

/// A lock that is held until this is dropped, and not beyond the end of the request or call that took it, however that ends.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Held(lock::Held);

impl Held {
    pub fn mode(&self) -> Mode {
        self.0.mode()
    }
}

/// A queue in memory: first in, first out, 10,000 entries and 64 MiB at most. Made by [`queue`].
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    name: &'a str,
}

impl Queue<'_> {
    /// Adds an entry at the end, as JSON. Returns the queue's new length, 0 if someone waited for the entry.
    ///
    /// # Errors
    /// [`LockError::Invalid`] when the queue is full, or the entry has no JSON.
    pub fn push(self, entry: &impl Serialize) -> Result<u32, LockError> {
        let json = serde_json::to_string(entry).map_err(|error| LockError::Invalid(error.to_string()))?;
        self.push_raw(&Payload::Json(json))
    }

    /// Adds an entry at the end as it is.
    ///
    /// # Errors
    /// [`LockError::Invalid`] when the queue is full.
    pub fn push_raw(self, entry: &Payload) -> Result<u32, LockError> {
        Ok(lock::queue_push(self.name, entry)?)
    }

    /// Takes the first entry, and waits for one for at most so long, never longer than until the request's deadline; none if
    /// there was none. An entry that was taken is gone, whatever becomes of the request.
    ///
    /// # Errors
    /// [`LockError::Invalid`], also when the entry is of another type: it is taken all the same.
    pub fn pop<T: DeserializeOwned>(self, timeout: Duration) -> Result<Option<T>, LockError> {
        let unfit = |text: &dyn fmt::Display| LockError::Invalid(format!("the entry of queue {}: {text}", self.name));
        match self.pop_raw(timeout)? {
            Some(Payload::Json(json)) => serde_json::from_str(&json).map(Some).map_err(|error| unfit(&error)),
            Some(Payload::Bytes(_)) => Err(unfit(&"bytes came where JSON was expected")),
            None => Ok(None),
        }
    }

    /// The same with an entry as it is.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn pop_raw(self, timeout: Duration) -> Result<Option<Payload>, LockError> {
        Ok(lock::queue_pop(self.name, milliseconds(timeout))?)
    }

    /// Entries that are there now.
    pub fn length(self) -> u32 {
        lock::queue_length(self.name)
    }
}

fn milliseconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
}

/// Why there is no lock, or an entry was not taken or given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockError {
    /// A name that is not allowed, or a bound: says which.
    Invalid(String),
    /// The timeout or the request's deadline came first.
    TimedOut(String),
    /// The request holds what it would wait for, by itself or through a call.
    WouldDeadlock(String),
}

impl From<lock::LockError> for LockError {
    fn from(error: lock::LockError) -> Self {
        match error {
            lock::LockError::Invalid(text) => Self::Invalid(text),
            lock::LockError::TimedOut(text) => Self::TimedOut(text),
            lock::LockError::WouldDeadlock(text) => Self::WouldDeadlock(text),
        }
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(text) => f.write_str(text),
            Self::TimedOut(text) => write!(f, "timed out: {text}"),
            Self::WouldDeadlock(text) => write!(f, "waiting would never end: {text}"),
        }
    }
}

impl std::error::Error for LockError {}
