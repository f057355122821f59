//! What the file system says, as a module sees it.

use std::io;

use rustix::io::Errno;

use wasmcage_resource::{Phase, ResourceError};

pub(super) const NOT_FOUND: &str = "not-found";
pub(super) const EXISTS: &str = "exists";
const NOT_A_FILE: &str = "not-a-file";
const IO: &str = "io";

/// Nothing irreversible was done.
pub(super) fn harmless(phase: Phase, what: &str, error: &io::Error) -> ResourceError {
    ResourceError::harmless(phase, code(error), format!("{what}: {error}"))
}

/// Part of it was done.
pub(super) fn halfway(what: &str, error: &io::Error) -> ResourceError {
    ResourceError { recoverable: false, ..harmless(Phase::Commit, what, error) }
}

fn code(error: &io::Error) -> &'static str {
    // What is a symbolic link is not followed.
    if Errno::from_io_error(error) == Some(Errno::LOOP) {
        return NOT_A_FILE;
    }
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        io::ErrorKind::AlreadyExists => EXISTS,
        io::ErrorKind::PermissionDenied => "permission-denied",
        io::ErrorKind::ReadOnlyFilesystem => "read-only",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no-space",
        io::ErrorKind::FileTooLarge => ResourceError::TOO_LARGE,
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => NOT_A_FILE,
        _ => IO,
    }
}

pub(super) fn bad(text: impl Into<String>) -> ResourceError {
    ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text)
}
