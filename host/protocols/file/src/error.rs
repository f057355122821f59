//! Turns errors of the file system into errors of the resource.

use std::io;

use rustix::io::Errno;

use wasmcage_resource::{Phase, ResourceError};

pub(super) const NOT_FOUND: &str = "not-found";
pub(super) const EXISTS: &str = "exists";
const NOT_A_FILE: &str = "not-a-file";
const IO: &str = "io";

/// The error of an operation that has changed nothing irreversibly.
pub(super) fn harmless(phase: Phase, what: &str, error: &io::Error) -> ResourceError {
    ResourceError::harmless(phase, code(error), format!("{what}: {error}"))
}

/// The error of a commit that was carried out in part.
pub(super) fn halfway(what: &str, error: &io::Error) -> ResourceError {
    ResourceError { recoverable: false, ..harmless(Phase::Commit, what, error) }
}

fn code(error: &io::Error) -> &'static str {
    // The name is a symbolic link, which is not followed.
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
