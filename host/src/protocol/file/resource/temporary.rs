//! Files that are being written: under a hidden name until they are renamed, locked as long as somebody works on them, so
//! that what a crash left behind can be told from what is in use.

use std::ffi::{CStr, CString};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};

use crate::protocol::file::directory::Directory;
use crate::protocol::file::name::{OWN_PREFIX, is_own};

/// Removed when dropped, unless it was put into its place.
pub(super) struct Temporary {
    home: Arc<Directory>,
    name: CString,
    /// Holds the lock.
    _file: OwnedFd,
    placed: bool,
}

impl Temporary {
    /// `content` is on the disk when this returns, under a name that nobody looks for.
    pub(super) fn write(home: Arc<Directory>, content: &[u8], permissions: Option<Mode>) -> io::Result<Self> {
        let (name, file) = create(&home)?;
        let this = Self { home, name, _file: file.try_clone()?, placed: false };
        if let Some(permissions) = permissions {
            rustix::fs::fchmod(&file, permissions)?;
        }
        let mut file = std::fs::File::from(file);
        file.write_all(content)?;
        file.sync_all()?;
        Ok(this)
    }

    /// Under its name at last; not yet on the disk.
    pub(super) fn place(mut self, parent: &Directory, name: &CStr, overwrite: bool) -> io::Result<()> {
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(&*self.home, self.name.as_c_str(), parent, name, flags)?;
        self.placed = true;
        Ok(())
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
