//! Errors of durable data.

use std::fmt;

use crate::bindings::imports::wasmcage::cage::state;

/// Why nothing was read or written. `?` converts it to [`Error::Failed`](crate::Error::Failed).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// A name or value is invalid, such as a key over 1,024 bytes; the text says which.
    Invalid(String),
    /// The module's quota of bytes, or of keys and entries of queues, is exceeded: see `state = { .. }` in `cage.toml`.
    QuotaExceeded(String),
    /// The condition of the transaction's step with this index did not hold; no step was done.
    Conflict(usize),
    /// The store is unavailable: the disk has too little free space or fails, or the cage is stopping.
    Unavailable(String),
    /// The request's deadline has passed; the write may have been done.
    TimedOut(String),
    /// A value does not fit the requested type, or cannot be converted to JSON.
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
