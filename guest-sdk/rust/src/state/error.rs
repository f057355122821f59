//! Why nothing was read or written.

use std::fmt;

use crate::bindings::imports::wasmcage::cage::state;

/// Why nothing was read or written. `?` makes [`Error::Failed`](crate::Error::Failed) of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// A name or a value that is not allowed, such as a key over 1,024 bytes: says which.
    Invalid(String),
    /// The module's bound on bytes, keys or entries of queues, `state = { .. }` of its `cage.toml`: says which.
    QuotaExceeded(String),
    /// The condition of the transaction's step with this number, from 0, did not hold; nothing of it was done.
    Conflict(usize),
    /// The store takes nothing now: the disk has too little room or fails, or the cage is stopping.
    Unavailable(String),
    /// The request's deadline came first; what was to be written may have been.
    TimedOut(String),
    /// A value that is not of the type asked for, or has no JSON.
    BadValue(String),
}

impl From<state::StateError> for StateError {
    fn from(error: state::StateError) -> Self {
        match error {
            state::StateError::Invalid(text) => Self::Invalid(text),
            state::StateError::QuotaExceeded(text) => Self::QuotaExceeded(text),
            state::StateError::Conflict(step) => Self::Conflict(step as usize),
            state::StateError::Unavailable(text) => Self::Unavailable(text),
            state::StateError::TimedOut(text) => Self::TimedOut(text),
        }
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(text) => write!(f, "state does not allow it: {text}"),
            Self::QuotaExceeded(text) => write!(f, "state quota exceeded: {text}"),
            Self::Conflict(step) => write!(f, "state conflict: the condition of step {step} does not hold"),
            Self::Unavailable(text) => write!(f, "state unavailable: {text}"),
            Self::TimedOut(text) => write!(f, "state timed out: {text}"),
            Self::BadValue(text) => write!(f, "value of another type: {text}"),
        }
    }
}

impl std::error::Error for StateError {}
