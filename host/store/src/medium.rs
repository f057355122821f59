//! Where the file is stored: in a directory; in tests, on a disk that fails at a chosen write.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::{Builder, Database, DatabaseError};
use rustix::fs::{Advice, CWD, RenameFlags, renameat_with};

use super::error::failed;
use super::{StoreError, format};
use wasmcage_core::file_identity::FileIdentity;
use wasmcage_core::private;

/// Name of the file in the cage's `state` directory.
pub(super) const FILE: &str = "store.redb";
/// Size of the library's page cache. The operating system caches more.
pub(super) const CACHE_BYTES: usize = 32 << 20;

const GONE: &str = "the file was moved away or removed while the cage had it open: nothing is read or written until it, or a \
                    copy, is put back; after a restart of the cage the store is empty";
const REPLACED: &str = "another file was put in the place of the one that the cage had open: nothing is written into the old \
                        one any more, and the new one is opened when it has not changed for a second";

pub(super) trait Medium: Send + Sync {
    /// Opens the file. One that does not exist is created if `make`; otherwise there is none.
    ///
    /// # Errors
    /// The file can be neither opened nor created.
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError>;

    /// Returns whether the last `open` failed because another process has the file open.
    fn is_held_elsewhere(&self) -> bool {
        false
    }

    /// Checks that the file that was opened last still has its name.
    ///
    /// # Errors
    /// The file was moved, removed or replaced, after which none is created in its place; or its name cannot be looked up.
    fn check_name(&self) -> Result<(), StoreError>;

    /// # Errors
    /// Those of the operating system.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Returns whether the file exists, or may exist when that cannot be found out.
    fn is_there(&self) -> bool;

    /// Size of the file; 0 when it is not known.
    fn file_bytes(&self) -> u64;

    /// Names the file in messages.
    fn name(&self) -> String;
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

pub(super) struct StoreDirectory {
    path: PathBuf,
    file: PathBuf,
    name_state: Mutex<NameState>,
    held_elsewhere: AtomicBool,
}

/// Which file has the name `store.redb`.
enum NameState {
    /// The open file had it when that was checked last.
    Held(FileIdentity),
    /// No file was open yet.
    Free,
    /// The open file lost it. With the last sight of a file that has the name now, which is opened once it is seen unchanged.
    Lost(Option<FileCopyState>),
}

/// State of a file that somebody may still be copying.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileCopyState {
    identity: FileIdentity,
    bytes: u64,
    modified: (i64, i64),
}

impl From<Metadata> for FileCopyState {
    fn from(metadata: Metadata) -> Self {
        let (bytes, modified) = (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()));
        Self { identity: metadata.into(), bytes, modified }
    }
}

impl StoreDirectory {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: path.join(FILE),
            name_state: Mutex::new(NameState::Free),
            held_elsewhere: AtomicBool::new(false),
        }
    }

    /// Drops the file's pages from the system's cache, so that it is read from the disk: after a failed write, the cache may
    /// hold pages that are marked as written and are not on the disk.
    fn drop_page_cache(file: &File) -> Result<(), StoreError> {
        rustix::fs::fadvise(file, 0, None, Advice::DontNeed).map_err(|error| failed(io::Error::from(error)))
    }

    /// Creates the file under another name and renames it when it is complete: a crash leaves no file that cannot be opened, and
    /// of two processes, the second fails.
    fn make(&self) -> Result<(Database, FileIdentity), StoreError> {
        private::create_directory(&self.path).map_err(failed)?;
        let unfinished = self.path.join(format!("{FILE}.new-{:016x}", fastrand::u64(..)));
        let made = self.make_as(&unfinished);
        if made.is_err() {
            // This fails if it was renamed already.
            let _ = fs::remove_file(&unfinished);
        }
        made
    }

    fn make_as(&self, unfinished: &Path) -> Result<(Database, FileIdentity), StoreError> {
        let file = private::open(unfinished, OpenOptions::new().read(true).write(true).create_new(true));
        let file = file.map_err(failed)?;
        let identity = FileIdentity::of(&file).map_err(failed)?;
        let database = builder().create_file(file).map_err(failed)?;
        format::bring_up_to_date(&database)?;
        renameat_with(CWD, unfinished, CWD, &self.file, RenameFlags::NOREPLACE)
            .map_err(|error| failed(io::Error::from(error)))?;
        for directory in [Some(self.path.as_path()), self.path.parent()].into_iter().flatten() {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        }
        Ok((database, identity))
    }

    fn open_existing(&self, file: File) -> Result<(Database, FileIdentity), StoreError> {
        let metadata = file.metadata().map_err(failed)?;
        // The library would make a store of an empty file, which this program never leaves behind.
        if metadata.len() == 0 {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidData)));
        }
        Self::drop_page_cache(&file)?;
        let database = builder().create_file(file).map_err(|error| {
            let held = matches!(error, DatabaseError::DatabaseAlreadyOpen);
            self.held_elsewhere.store(held, Ordering::Relaxed);
            failed(error)
        })?;
        format::bring_up_to_date(&database)?;
        Ok((database, metadata.into()))
    }

    /// Opens the file at the path, if there is one.
    fn open_path(&self) -> Result<Option<File>, StoreError> {
        match OpenOptions::new().read(true).write(true).open(&self.file) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Medium for StoreDirectory {
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError> {
        let mut name_state = self.name_state.lock();
        self.held_elsewhere.store(false, Ordering::Relaxed);
        let opened = match (self.open_path()?, &mut *name_state) {
            (None, NameState::Lost(last)) => {
                *last = None;
                return Err(StoreError::Unavailable(GONE.to_owned()));
            }
            (None, _) if make => self.make()?,
            (None, _) => return Ok(None),
            (Some(file), NameState::Lost(last)) => {
                let now = Some(FileCopyState::from(file.metadata().map_err(failed)?));
                if std::mem::replace(last, now) != now {
                    return Err(StoreError::Unavailable(REPLACED.to_owned()));
                }
                self.open_existing(file)?
            }
            (Some(file), _) => self.open_existing(file)?,
        };
        let (database, identity) = opened;
        *name_state = NameState::Held(identity);
        Ok(Some(database))
    }

    fn is_held_elsewhere(&self) -> bool {
        self.held_elsewhere.load(Ordering::Relaxed)
    }

    fn check_name(&self) -> Result<(), StoreError> {
        let mut name_state = self.name_state.lock();
        let NameState::Held(held) = *name_state else { return Ok(()) };
        match FileIdentity::at(&self.file).map_err(failed)? {
            Some(found) if found == held => Ok(()),
            found => {
                *name_state = NameState::Lost(None);
                Err(StoreError::Unavailable(if found.is_none() { GONE } else { REPLACED }.to_owned()))
            }
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.path);
        // Before the first write there may be no directory.
        let found = found.or_else(|_| rustix::fs::statvfs(self.path.parent().unwrap_or(&self.path)))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn is_there(&self) -> bool {
        self.file.try_exists().unwrap_or(true)
    }

    fn file_bytes(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |metadata| metadata.len())
    }

    fn name(&self) -> String {
        self.file.display().to_string()
    }
}
