//! Where the file is: a directory; in tests, a disk that fails when told to.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use redb::{Builder, Database};
use rustix::fs::{Advice, CWD, RenameFlags, renameat_with};

use super::error::failed;
use super::{StoreError, format};

/// In the directory.
pub(super) const FILE: &str = "store.redb";
/// Pages of the file that are kept in memory at most; the system keeps others.
const CACHE_BYTES: usize = 32 << 20;

pub(super) trait Medium: Send + Sync {
    /// Opens the file, and makes it if it is not there and `make`; else none.
    ///
    /// # Errors
    /// Neither is possible.
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError>;

    /// # Errors
    /// Of the system.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Whether there may be a file.
    fn is_there(&self) -> bool;

    /// Of the file.
    fn file_bytes(&self) -> u64;

    /// For messages.
    fn name(&self) -> String;
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

pub(super) struct Directory(pub PathBuf);

impl Directory {
    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    /// After a write that failed, the system may hold what the disk does not, and call it written. What is read from here on
    /// is read from the disk.
    fn forget_cached(&self) -> Result<(), StoreError> {
        let file = File::open(self.file()).map_err(failed)?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| failed(io::Error::from(error)))
    }

    /// Complete before it has its name: a crash leaves no file that cannot be opened. Of two processes, one is first.
    fn make(&self) -> Result<Database, StoreError> {
        fs::create_dir_all(&self.0).map_err(failed)?;
        let unfinished = self.0.join(format!("{FILE}.new-{:016x}", fastrand::u64(..)));
        let made = builder().create(&unfinished).map_err(failed).and_then(|database| {
            format::bring_up_to_date(&database)?;
            renameat_with(CWD, &unfinished, CWD, self.file(), RenameFlags::NOREPLACE)
                .map_err(|error| failed(io::Error::from(error)))?;
            for directory in [Some(self.0.as_path()), self.0.parent()].into_iter().flatten() {
                File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
            }
            Ok(database)
        });
        if made.is_err() {
            // It is not there if it has its name already.
            let _ = fs::remove_file(&unfinished);
        }
        made
    }
}

impl Medium for Directory {
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError> {
        match self.file().try_exists().map_err(failed)? {
            false if make => self.make().map(Some),
            false => Ok(None),
            true => {
                self.forget_cached()?;
                let database = builder().open(self.file()).map_err(failed)?;
                format::bring_up_to_date(&database)?;
                Ok(Some(database))
            }
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.0);
        // Before the first write there is no directory.
        let found = found.or_else(|_| rustix::fs::statvfs(self.0.parent().unwrap_or(&self.0)))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn is_there(&self) -> bool {
        self.file().try_exists().unwrap_or(true)
    }

    fn file_bytes(&self) -> u64 {
        fs::metadata(self.file()).map_or(0, |metadata| metadata.len())
    }

    fn name(&self) -> String {
        self.file().display().to_string()
    }
}
