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

/// A lock with this name of up to 64 characters. It needs not be created.
pub fn named(name: &str) -> Lock<'_> {
    Lock { name, timeout: None }
}

/// A queue in memory with this name of up to 64 characters. It needs not be created.
pub fn queue(name: &str) -> Queue<'_> {
    Queue { name }
}

/// A lock that is not held yet, made by [`named`].
#[derive(Clone, Copy, Debug)]
pub struct Lock<'a> {
    name: &'a str,
    timeout: Option<Duration>,
}

impl Lock<'_> {
    /// Sets how long to wait at most; the request's deadline holds anyway.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Waits until no writer holds the lock or has waited for it longer.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn read(self) -> Result<Held, LockError> {
        self.acquire(Mode::Read)
    }

    /// Waits until nobody holds the lock or has waited for it longer.
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

/// A lock that is held until this is dropped, or until the request or call that acquired it ends.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Held(lock::Held);

impl Held {
    pub fn mode(&self) -> Mode {
        self.0.mode()
    }
}

/// A queue in memory, made by [`queue`]: first in, first out, 10,000 entries and 64 MiB at most.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    name: &'a str,
}

impl Queue<'_> {
    /// Adds an entry at the end, as JSON. Returns the queue's new length; 0 if a waiter took the entry.
    ///
    /// # Errors
    /// [`LockError::Invalid`] when the queue is full, or the entry cannot be converted to JSON.
    pub fn push(self, entry: &impl Serialize) -> Result<u32, LockError> {
        let json = serde_json::to_string(entry).map_err(|error| LockError::Invalid(error.to_string()))?;
        self.push_raw(&Payload::Json(json))
    }

    /// Adds an entry at the end, unconverted.
    ///
    /// # Errors
    /// [`LockError::Invalid`] when the queue is full.
    pub fn push_raw(self, entry: &Payload) -> Result<u32, LockError> {
        Ok(lock::queue_push(self.name, entry)?)
    }

    /// Takes the first entry, and waits for one until the timeout or the request's deadline; none if there was none. An entry
    /// that was taken is gone, whatever happens to the request.
    ///
    /// # Errors
    /// [`LockError::Invalid`], also when the entry has another type; it is taken all the same.
    pub fn pop<T: DeserializeOwned>(self, timeout: Duration) -> Result<Option<T>, LockError> {
        let unfit = |text: &dyn fmt::Display| LockError::Invalid(format!("the entry of queue {}: {text}", self.name));
        match self.pop_raw(timeout)? {
            Some(Payload::Json(json)) => serde_json::from_str(&json).map(Some).map_err(|error| unfit(&error)),
            Some(Payload::Bytes(_)) => Err(unfit(&"bytes came where JSON was expected")),
            None => Ok(None),
        }
    }

    /// As [`pop`](Self::pop), with the entry unconverted.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn pop_raw(self, timeout: Duration) -> Result<Option<Payload>, LockError> {
        Ok(lock::queue_pop(self.name, milliseconds(timeout))?)
    }

    /// Returns the present number of entries.
    pub fn length(self) -> u32 {
        lock::queue_length(self.name)
    }
}

fn milliseconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
}

/// Why a lock was not acquired, or an entry not pushed or popped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockError {
    /// The name is invalid, or a limit is exceeded; the text says which.
    Invalid(String),
    /// The timeout or the request's deadline has passed.
    TimedOut(String),
    /// The request holds the lock that it would wait for, itself or through a call.
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
