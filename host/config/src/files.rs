//! The configuration files of a cage as files: where they are, what can be seen of them without reading, and who tells that
//! one is being saved.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::{FILE_BYTES_MAX, FILE_NAME, SHARED_DIRECTORY};
use wasmcage_core::regular_file::{self, FileStamp};

/// The shared file, and the cage's own, which overlays it.
pub fn files(root: &Path, cage: &str) -> [PathBuf; 2] {
    [SHARED_DIRECTORY, cage].map(|directory| root.join(directory).join(FILE_NAME))
}

/// What is known of both files without reading them; none for a file that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps([Option<FileStamp>; 2]);

impl Stamps {
    /// Blocks.
    pub fn of(files: &[PathBuf; 2]) -> Self {
        Self(files.each_ref().map(|file| fs::metadata(file).ok().map(|metadata| FileStamp::of(&metadata))))
    }

    /// Whether a write since then might not show.
    pub fn is_recent(&self) -> bool {
        self.0.iter().flatten().any(FileStamp::is_recent)
    }

    /// Whether a file that had content is now empty or gone, as it is for a moment while it is saved in place.
    pub fn has_lost(&self, before: &Self) -> bool {
        let bytes = |stamp: &Option<FileStamp>| stamp.as_ref().map_or(0, FileStamp::bytes);
        self.0.iter().zip(&before.0).any(|(now, before)| bytes(now) == 0 && bytes(before) > 0)
    }

    /// Whether what differs are whole files that were put in place, rather than files that are written to.
    pub fn is_replaced(&self, before: &Self) -> bool {
        self.0.iter().zip(&before.0).all(|files| match files {
            (Some(now), Some(before)) => now == before || now.is_another_file(before),
            (now, before) => now.is_some() || before.is_none(),
        })
    }
}

/// The text of a file, none when there is no such file.
///
/// # Errors
/// Why it cannot be read, as a sentence.
pub(super) fn read(file: &Path) -> Result<Option<String>, String> {
    if regular_file::is_absent(file) {
        return Ok(None);
    }
    // One byte more than is allowed shows that there is more; the reader of the text tells so.
    let bytes = regular_file::read_beginning(file, FILE_BYTES_MAX as u64 + 1);
    let bytes = bytes.map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| format!("not UTF-8 after byte {}", error.utf8_error().valid_up_to()))
}

/// Tells that something happens to a `cage.toml`. The latest news is the one that counts.
#[derive(Debug, Default)]
pub struct ConfigSignal {
    is_complete: AtomicBool,
    changed: Notify,
}

impl ConfigSignal {
    /// `is_complete`: its writer has closed it, or it was put in place as a whole.
    pub fn send(&self, is_complete: bool) {
        self.is_complete.store(is_complete, Ordering::Release);
        self.changed.notify_one();
    }

    /// Waits for the next news.
    pub async fn next(&self) -> bool {
        self.changed.notified().await;
        self.is_complete.load(Ordering::Acquire)
    }
}
