//! The configuration files of a cage: their paths, their state without reading them, and the signal that one is being saved.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::{FILE_BYTES_MAX, FILE_NAME, SHARED_DIRECTORY};
use wasmcage_core::regular_file::{self, FileStamp};

/// Returns the paths of the shared file and of the cage's own, which overlays it.
pub fn files(root: &Path, cage: &str) -> [PathBuf; 2] {
    [SHARED_DIRECTORY, cage].map(|directory| root.join(directory).join(FILE_NAME))
}

/// The stamps of both files; none for a file that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamps([Option<FileStamp>; 2]);

impl FileStamps {
    /// Reads the stamps. Blocks on the disk.
    pub fn of(files: &[PathBuf; 2]) -> Self {
        Self(files.each_ref().map(|file| fs::metadata(file).ok().map(|metadata| FileStamp::of(&metadata))))
    }

    /// Returns whether a later write might not change the stamps.
    pub fn is_recent(&self) -> bool {
        self.0.iter().flatten().any(FileStamp::is_recent)
    }

    /// Returns whether a file that had content is empty or gone now, as it is for a moment while it is saved in place.
    pub fn has_lost(&self, before: &Self) -> bool {
        let bytes = |stamp: &Option<FileStamp>| stamp.as_ref().map_or(0, FileStamp::bytes);
        self.0.iter().zip(&before.0).any(|(now, before)| bytes(now) == 0 && bytes(before) > 0)
    }

    /// Returns whether all files that differ were replaced by other files, rather than written to.
    pub fn is_replaced(&self, before: &Self) -> bool {
        self.0.iter().zip(&before.0).all(|files| match files {
            (Some(now), Some(before)) => now == before || now.is_another_file(before),
            (now, before) => now.is_some() || before.is_none(),
        })
    }
}

/// Reads a file; none if it does not exist.
///
/// # Errors
/// A text that says why it cannot be read.
pub(super) fn read(file: &Path) -> Result<Option<String>, String> {
    if regular_file::is_absent(file) {
        return Ok(None);
    }
    // One byte more than allowed is read, so that the parser finds the text too long.
    let bytes = regular_file::read_beginning(file, FILE_BYTES_MAX as u64 + 1);
    let bytes = bytes.map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| format!("not UTF-8 after byte {}", error.utf8_error().valid_up_to()))
}

/// Signals that a `cage.toml` changes. Only the latest signal counts.
#[derive(Debug, Default)]
pub struct ConfigSignal {
    is_complete: AtomicBool,
    changed: Notify,
}

impl ConfigSignal {
    /// Signals a change. `is_complete`: the writer has closed the file, or it was replaced as a whole.
    pub fn send(&self, is_complete: bool) {
        self.is_complete.store(is_complete, Ordering::Release);
        self.changed.notify_one();
    }

    /// Waits for the next signal. Returns its `is_complete`.
    pub async fn next(&self) -> bool {
        self.changed.notified().await;
        self.is_complete.load(Ordering::Acquire)
    }
}
