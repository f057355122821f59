//! Errors of the store.

use wasmcage_core::error::DispatchError;

/// Says what to do about a damaged file.
pub(super) const REPAIR_HINT: &str = "put a copy of it back, or move it away to begin with an empty store";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A name or a value that is not allowed.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    QuotaExceeded(String),
    /// The condition of the step with this index did not hold.
    #[error("the condition of step {0} does not hold")]
    Conflict(usize),
    /// The disk has too little free space or fails, or the cage is stopping. Nothing was written, unless the text says that it
    /// may have been: after a failure in the middle of a commit, the state of the disk is unknown.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The write may or may not have been done.
    #[error("the deadline passed before the write was done")]
    TimedOut,
}

impl StoreError {
    /// A record is not in the format that this version writes.
    pub(super) fn damaged(what: &str) -> Self {
        Self::Unavailable(format!("{what} in the file is damaged: {REPAIR_HINT}"))
    }
}

/// Converts any of the library's errors.
pub(super) fn failed(error: impl Into<redb::Error>) -> StoreError {
    use std::io::ErrorKind::{InvalidData, ReadOnlyFilesystem, UnexpectedEof};

    let error = error.into();
    StoreError::Unavailable(match &error {
        redb::Error::Corrupted(_) => format!("the file is damaged ({error}): {REPAIR_HINT}"),
        redb::Error::Io(io) if matches!(io.kind(), InvalidData | UnexpectedEof) => {
            format!("the file is damaged, or another program's ({error}): {REPAIR_HINT}")
        }
        redb::Error::Io(io) if io.kind() == ReadOnlyFilesystem => {
            format!("{error}: nothing is read or written until the disk can be written")
        }
        _ => error.to_string(),
    })
}

impl From<StoreError> for DispatchError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Invalid(_) => Self::BadRequest(text),
            StoreError::QuotaExceeded(_) | StoreError::Unavailable(_) => Self::Overloaded(text),
            StoreError::Conflict(_) => Self::Failed(text),
            StoreError::TimedOut => Self::DeadlineExceeded(text),
        }
    }
}
