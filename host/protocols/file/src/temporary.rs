//! Files that are being written. They have a hidden name until they are complete, and are locked meanwhile, so that the
//! leftovers of a crash can be distinguished from files in use.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::directory::DirectoryHandle;
use super::name::{OWN_PREFIX, is_own};

/// A file under a hidden name. It is removed when this is dropped, unless it was placed.
pub(super) struct TemporaryFile {
    directory: Arc<DirectoryHandle>,
    name: CString,
    /// Holds the lock.
    file: File,
    placed: bool,
}

impl TemporaryFile {
    /// Writes `content` to a new hidden file; it is on the disk when this returns.
    pub(super) fn write(
        directory: Arc<DirectoryHandle>,
        mut content: impl Read,
        permissions: Option<Mode>,
    ) -> io::Result<Self> {
        let (name, file) = create(&directory)?;
        let mut this = Self { directory, name, file: file.into(), placed: false };
        if let Some(permissions) = permissions {
            rustix::fs::fchmod(&this.file, permissions)?;
        }
        io::copy(&mut content, &mut this.file)?;
        this.file.sync_all()?;
        Ok(this)
    }

    /// The file, for setting its owner or times.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, unless that is taken.
    ///
    /// # Errors
    /// `AlreadyExists`, after which another name may be tried.
    pub(super) fn try_place(&mut self, directory: &DirectoryHandle, name: &CStr) -> io::Result<()> {
        self.directory.rename(&self.name, directory, name, false)?;
        self.placed = true;
        Ok(())
    }

    /// Gives the file its name; the directory still has to be flushed. For another file system the file is copied
    /// first, so that it is complete at once there, too.
    pub(super) fn place(mut self, parent: &DirectoryHandle, name: &CStr, overwrite: bool) -> io::Result<()> {
        match self.directory.rename(&self.name, parent, name, overwrite) {
            Ok(()) => {
                self.placed = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let (content, _) = self.directory.file(&self.name)?;
                let mode = Mode::from_raw_mode(rustix::fs::fstat(&content)?.st_mode & 0o7777);
                Self::write(Arc::new(parent.duplicate()?), content, Some(mode))?.place(parent, name, overwrite)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.placed {
            // If this fails, the next start removes the file.
            let _ = self.directory.remove(&self.name);
        }
    }
}

fn create(directory: &DirectoryHandle) -> io::Result<(CString, OwnedFd)> {
    const NEW: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);
    loop {
        let name = CString::new(format!("{OWN_PREFIX}{:016x}.tmp", fastrand::u64(..)))?;
        let file = rustix::fs::openat(directory, name.as_c_str(), NEW, Mode::from_raw_mode(0o666))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        // A concurrent sweep may have locked and removed it before.
        if rustix::fs::fstat(&file)?.st_nlink > 0 {
            return Ok((name, file));
        }
    }
}

/// Removes unfinished files that are not in use, and returns how many there were.
pub(super) fn sweep(directory: &DirectoryHandle) -> io::Result<usize> {
    let mut removed = 0;
    for name in directory.names()? {
        let name = name?;
        if !is_own(name.to_bytes()) {
            continue;
        }
        // The file was removed meanwhile, or cannot be opened.
        let Ok((file, _)) = directory.file(&name) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::empty())?;
            removed += 1;
        }
    }
    Ok(removed)
}
