//! Files that are being written: under a hidden name until they are renamed, locked as long as somebody works on them, so
//! that what a crash left behind can be told from what is in use.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::directory::Directory;
use super::name::{OWN_PREFIX, is_own};

/// Removed when dropped, unless it was put into its place.
pub(super) struct Temporary {
    home: Arc<Directory>,
    name: CString,
    /// Holds the lock.
    file: File,
    placed: bool,
}

impl Temporary {
    /// `content` is on the disk when this returns, under a name that nobody looks for.
    pub(super) fn write(home: Arc<Directory>, mut content: impl Read, permissions: Option<Mode>) -> io::Result<Self> {
        let (name, file) = create(&home)?;
        let mut this = Self { home, name, file: file.into(), placed: false };
        if let Some(permissions) = permissions {
            rustix::fs::fchmod(&this.file, permissions)?;
        }
        io::copy(&mut content, &mut this.file)?;
        this.file.sync_all()?;
        Ok(this)
    }

    /// What it will be known by, such as its times, can be set here.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Under a name in its own directory that is not taken, at last.
    ///
    /// # Errors
    /// `AlreadyExists`, after which another name may be tried.
    pub(super) fn try_place(&mut self, home: &Directory, name: &CStr) -> io::Result<()> {
        self.home.rename(&self.name, home, name, false)?;
        self.placed = true;
        Ok(())
    }

    /// Under its name at last; not yet on the disk. In a directory of another file system it is copied first, so that there, too,
    /// others see all of it or nothing.
    pub(super) fn place(mut self, parent: &Directory, name: &CStr, overwrite: bool) -> io::Result<()> {
        match self.home.rename(&self.name, parent, name, overwrite) {
            Ok(()) => {
                self.placed = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let (content, _) = self.home.file(&self.name)?;
                let mode = Mode::from_raw_mode(rustix::fs::fstat(&content)?.st_mode & 0o7777);
                Self::write(Arc::new(parent.again()?), content, Some(mode))?.place(parent, name, overwrite)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be removed now is removed at the next start.
            let _ = self.home.remove(&self.name);
        }
    }
}

fn create(home: &Directory) -> io::Result<(CString, OwnedFd)> {
    const NEW: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);
    loop {
        let name = CString::new(format!("{OWN_PREFIX}{:016x}.tmp", fastrand::u64(..)))?;
        let file = rustix::fs::openat(home, name.as_c_str(), NEW, Mode::from_raw_mode(0o666))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        // A sweep may have been faster with the lock.
        if rustix::fs::fstat(&file)?.st_nlink > 0 {
            return Ok((name, file));
        }
    }
}

/// Removes what nobody works on any more; how many there were.
pub(super) fn sweep(home: &Directory) -> io::Result<usize> {
    let mut removed = 0;
    for name in home.names()? {
        let name = name?;
        if !is_own(name.to_bytes()) {
            continue;
        }
        // Gone meanwhile, or in use: nobody's business.
        let Ok((file, _)) = home.file(&name) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            rustix::fs::unlinkat(home, name.as_c_str(), AtFlags::empty())?;
            removed += 1;
        }
    }
    Ok(removed)
}
