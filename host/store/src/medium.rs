//! Where the file is: a directory; in tests, a disk that fails when told to.

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

/// In the directory.
pub(super) const FILE: &str = "store.redb";
/// Pages of the file that are kept in memory at most; the system keeps others.
pub(super) const CACHE_BYTES: usize = 32 << 20;

const GONE: &str = "the file was moved away or removed while the cage had it open: nothing is read or written until it, or a \
                    copy, is put back; after a restart of the cage the store is empty";
const REPLACED: &str = "another file was put in the place of the one that the cage had open: nothing is written into the old \
                        one any more, and the new one is opened when it has not changed for a second";

pub(super) trait Medium: Send + Sync {
    /// Opens the file, and makes it if it is not there and `make`; else none.
    ///
    /// # Errors
    /// Neither is possible.
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError>;

    /// Whether the last `open` failed because another process has the file open.
    fn is_held_elsewhere(&self) -> bool {
        false
    }

    /// Checks that the file that was opened last still has its name.
    ///
    /// # Errors
    /// What has become of it, or that it cannot be looked at. From then on nothing is made in its place.
    fn check_place(&self) -> Result<(), StoreError>;

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

pub(super) struct Directory {
    path: PathBuf,
    file: PathBuf,
    place: Mutex<Place>,
    held_elsewhere: AtomicBool,
}

/// What is known of the file's name.
enum Place {
    /// The file that has it.
    Held(FileIdentity),
    /// No file was open yet, or the one that was had its name to the end.
    Free,
    /// A file was open that lost it; the one that was found there since, unless it was a moment ago only.
    Lost(Option<Look>),
}

/// One look at a file that somebody may be copying still.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    identity: FileIdentity,
    bytes: u64,
    modified: (i64, i64),
}

impl From<Metadata> for Look {
    fn from(metadata: Metadata) -> Self {
        let (bytes, modified) = (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()));
        Self { identity: metadata.into(), bytes, modified }
    }
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: path.join(FILE),
            place: Mutex::new(Place::Free),
            held_elsewhere: AtomicBool::new(false),
        }
    }

    /// After a write that failed, the system may hold what the disk does not, and call it written. What is read from here on
    /// is read from the disk.
    fn forget_cached(file: &File) -> Result<(), StoreError> {
        rustix::fs::fadvise(file, 0, None, Advice::DontNeed).map_err(|error| failed(io::Error::from(error)))
    }

    /// Complete before it has its name: a crash leaves no file that cannot be opened. Of two processes, one is first.
    fn make(&self) -> Result<(Database, FileIdentity), StoreError> {
        private::create_directory(&self.path).map_err(failed)?;
        let unfinished = self.path.join(format!("{FILE}.new-{:016x}", fastrand::u64(..)));
        let made = self.make_as(&unfinished);
        if made.is_err() {
            // It is not there if it has its name already.
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
        Self::forget_cached(&file)?;
        let database = builder().create_file(file).map_err(|error| {
            let held = matches!(error, DatabaseError::DatabaseAlreadyOpen);
            self.held_elsewhere.store(held, Ordering::Relaxed);
            failed(error)
        })?;
        format::bring_up_to_date(&database)?;
        Ok((database, metadata.into()))
    }

    /// The file at the path; none if there is none.
    fn found(&self) -> Result<Option<File>, StoreError> {
        match OpenOptions::new().read(true).write(true).open(&self.file) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Medium for Directory {
    fn open(&self, make: bool) -> Result<Option<Database>, StoreError> {
        let mut place = self.place.lock();
        self.held_elsewhere.store(false, Ordering::Relaxed);
        let opened = match (self.found()?, &mut *place) {
            (None, Place::Lost(look)) => {
                *look = None;
                return Err(StoreError::Unavailable(GONE.to_owned()));
            }
            (None, _) if make => self.make()?,
            (None, _) => return Ok(None),
            (Some(file), Place::Lost(look)) => {
                let now = Some(Look::from(file.metadata().map_err(failed)?));
                if std::mem::replace(look, now) != now {
                    return Err(StoreError::Unavailable(REPLACED.to_owned()));
                }
                self.open_existing(file)?
            }
            (Some(file), _) => self.open_existing(file)?,
        };
        let (database, identity) = opened;
        *place = Place::Held(identity);
        Ok(Some(database))
    }

    fn is_held_elsewhere(&self) -> bool {
        self.held_elsewhere.load(Ordering::Relaxed)
    }

    fn check_place(&self) -> Result<(), StoreError> {
        let mut place = self.place.lock();
        let Place::Held(held) = *place else { return Ok(()) };
        match FileIdentity::at(&self.file).map_err(failed)? {
            Some(found) if found == held => Ok(()),
            found => {
                *place = Place::Lost(None);
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
