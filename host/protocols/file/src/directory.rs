//! Opens files beneath a directory, step by step and without following symbolic links, so that no path leads out of the
//! directory, whatever others do to the tree meanwhile. All functions here block.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::name::FileName;

/// An open directory.
#[derive(Debug)]
pub(super) struct DirectoryHandle(OwnedFd);

/// The size, time and inode of a file. A replaced or changed file most likely has another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) size: u64,
    /// The time of the last change, in nanoseconds since 1970.
    pub(super) modified_ns: i128,
    inode: u64,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// The flags for regular files. Without NONBLOCK, opening a pipe would wait for a writer.
const REGULAR: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

impl DirectoryHandle {
    /// Opens a path of the configuration, which may lead through symbolic links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    fn subdirectory(&self, part: &str) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// Another handle of the same directory.
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Opens the directory at this path beneath this one.
    pub(super) fn walk(&self, parts: &[String]) -> io::Result<Self> {
        let mut directory = self.duplicate()?;
        for part in parts {
            directory = directory.subdirectory(part)?;
        }
        Ok(directory)
    }

    /// The same, but creates missing directories, durably.
    pub(super) fn walk_or_create(&self, parts: &[String]) -> io::Result<Self> {
        let mut directory = self.duplicate()?;
        for part in parts {
            match rustix::fs::mkdirat(&directory.0, part.as_str(), Mode::from_raw_mode(0o777)) {
                Ok(()) => directory.sync()?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            directory = directory.subdirectory(part)?;
        }
        Ok(directory)
    }

    /// Opens the directory of the file with this name.
    pub(super) fn parent(&self, name: &FileName) -> io::Result<Self> {
        self.walk(&name.directories)
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// `InvalidInput` for anything but a regular file.
    pub(super) fn file(&self, name: &CStr) -> io::Result<(File, FileStamp)> {
        let file = rustix::fs::openat(&self.0, name, REGULAR, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an ordinary file"));
        }
        Ok((File::from(file), FileStamp::of(&stat)))
    }

    /// The type and stamp of what has this name, without following a symbolic link; none if there is nothing.
    pub(super) fn stat(&self, name: &CStr) -> io::Result<Option<(FileType, FileStamp)>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), FileStamp::of(&stat)))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All names in the directory except `.` and `..`, in no particular order.
    pub(super) fn names(&self) -> io::Result<impl Iterator<Item = io::Result<CString>> + use<>> {
        let entries = Dir::read_from(&self.0)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_owned()));
        Ok(names.filter(|name| !name.as_ref().is_ok_and(|name| [c".", c".."].contains(&name.as_c_str()))))
    }

    pub(super) fn remove(&self, name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Renames a file, or moves it to another directory. Without `overwrite` it does not replace another file.
    ///
    /// # Errors
    /// `AlreadyExists`; `CrossesDevices` if the other directory is on another file system.
    pub(super) fn rename(&self, name: &CStr, to: &Self, new_name: &CStr, overwrite: bool) -> io::Result<()> {
        if overwrite {
            return Ok(rustix::fs::renameat(&self.0, name, &to.0, new_name)?);
        }
        match rustix::fs::renameat_with(&self.0, name, &to.0, new_name, RenameFlags::NOREPLACE) {
            // Some file systems, such as network ones, do not support NOREPLACE. A hard link does not replace a file
            // either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(&self.0, name, &to.0, new_name, AtFlags::empty())?;
                self.remove(name)
            }
            result => Ok(result?),
        }
    }

    /// Returns whether the path leads to this directory.
    ///
    /// # Errors
    /// `NotFound` if the path does not exist.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let (here, there) = (rustix::fs::fstat(&self.0)?, rustix::fs::stat(path)?);
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }

    /// The longest name of a file in this directory, in bytes.
    pub(super) fn name_bytes_max(&self) -> usize {
        rustix::fs::fstatvfs(&self.0).ok().and_then(|stat| usize::try_from(stat.f_namemax).ok()).unwrap_or(255)
    }

    /// Creates a file, or truncates it with `overwrite`; none if there is a file of that name and `overwrite` is false.
    pub(super) fn create(&self, name: &CStr, overwrite: bool) -> io::Result<Option<File>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = flags | if overwrite { OFlags::TRUNC } else { OFlags::EXCL };
        match rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Flushes changes of the directory's names to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

/// Reads a whole file; none if it has more than `max` bytes.
pub(super) fn read(file: File, stamp: FileStamp, max: u64) -> io::Result<Option<Bytes>> {
    if stamp.size > max {
        return Ok(None);
    }
    let mut content = Vec::with_capacity(stamp.size as usize);
    // The file may have grown meanwhile.
    file.take(max + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= max).then(|| content.into()))
}

impl AsFd for DirectoryHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FileStamp {
    fn of(stat: &Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            inode: stat.st_ino,
        }
    }

    /// The time of the last change, such as `2026-11-21T09:00:00.123Z`.
    pub(super) fn modified(&self) -> String {
        let at = jiff::Timestamp::from_nanosecond(self.modified_ns).unwrap_or_default();
        format!("{at:.3}")
    }
}
