//! Files beneath a directory, reached step by step without following a symbolic link: what is inside stays inside, whatever
//! others do to the tree meanwhile. Everything here blocks.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::name::Name;

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

/// What is known of a file. Another file, or another content, is most likely another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    /// Since the epoch.
    pub(super) modified_ns: i128,
    inode: u64,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Not waiting: a pipe would have no writer.
const REGULAR: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

impl Directory {
    /// A path of the configuration, which may lead through links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    fn beneath(&self, part: &str) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// The same directory once more.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The directory that these parts lead to, from here.
    pub(super) fn walk(&self, parts: &[String]) -> io::Result<Self> {
        let mut directory = self.again()?;
        for part in parts {
            directory = directory.beneath(part)?;
        }
        Ok(directory)
    }

    /// The same; what is missing on the way is made, durably.
    pub(super) fn walk_making(&self, parts: &[String]) -> io::Result<Self> {
        let mut directory = self.again()?;
        for part in parts {
            match rustix::fs::mkdirat(&directory.0, part.as_str(), Mode::from_raw_mode(0o777)) {
                Ok(()) => directory.sync()?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            directory = directory.beneath(part)?;
        }
        Ok(directory)
    }

    /// The directory that the name's file is in.
    pub(super) fn parent(&self, name: &Name) -> io::Result<Self> {
        self.walk(&name.directories)
    }

    /// A file to read, if it is an ordinary one.
    pub(super) fn file(&self, name: &CStr) -> io::Result<(File, Stamp)> {
        let file = rustix::fs::openat(&self.0, name, REGULAR, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an ordinary file"));
        }
        Ok((File::from(file), Stamp::of(&stat)))
    }

    /// Of what the name stands for itself; none if there is nothing.
    pub(super) fn stat(&self, name: &CStr) -> io::Result<Option<(FileType, Stamp)>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), Stamp::of(&stat)))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every name in it, but for `.` and `..`, in no order.
    pub(super) fn names(&self) -> io::Result<impl Iterator<Item = io::Result<CString>> + use<>> {
        let entries = Dir::read_from(&self.0)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_owned()));
        Ok(names.filter(|name| !name.as_ref().is_ok_and(|name| [c".", c".."].contains(&name.as_c_str()))))
    }

    pub(super) fn remove(&self, name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Moves a file to another directory, or gives it another name; without `overwrite`, only if there is none of that name.
    ///
    /// # Errors
    /// `AlreadyExists`; `CrossesDevices` when the other directory is on another file system.
    pub(super) fn rename(&self, name: &CStr, to: &Self, new_name: &CStr, overwrite: bool) -> io::Result<()> {
        if overwrite {
            return Ok(rustix::fs::renameat(&self.0, name, &to.0, new_name)?);
        }
        match rustix::fs::renameat_with(&self.0, name, &to.0, new_name, RenameFlags::NOREPLACE) {
            // Some file systems, such as those of a network, cannot do both in one step. A link never replaces either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(&self.0, name, &to.0, new_name, AtFlags::empty())?;
                self.remove(name)
            }
            renamed => Ok(renamed?),
        }
    }

    /// Whether the path leads to this very directory; `NotFound` when it leads nowhere.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let (here, there) = (rustix::fs::fstat(&self.0)?, rustix::fs::stat(path)?);
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }

    /// The longest name, in bytes, that a file in it can have.
    pub(super) fn name_bytes_max(&self) -> usize {
        rustix::fs::fstatvfs(&self.0).ok().and_then(|found| usize::try_from(found.f_namemax).ok()).unwrap_or(255)
    }

    /// A new file, or none if there is one of that name.
    pub(super) fn create(&self, name: &CStr, overwrite: bool) -> io::Result<Option<File>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = flags | if overwrite { OFlags::TRUNC } else { OFlags::EXCL };
        match rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what happened to names in it last.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

/// The whole content of a file, or none if it has more than `max` bytes.
pub(super) fn read(file: File, stamp: Stamp, max: u64) -> io::Result<Option<Bytes>> {
    if stamp.size > max {
        return Ok(None);
    }
    let mut content = Vec::with_capacity(stamp.size as usize);
    // It may have grown meanwhile.
    file.take(max + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= max).then(|| content.into()))
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
            inode: stat.st_ino,
        }
    }

    /// When the content changed last, as in `2026-11-21T09:00:00.123Z`.
    pub(super) fn modified(&self) -> String {
        let at = jiff::Timestamp::from_nanosecond(self.modified_ns).unwrap_or_default();
        format!("{at:.3}")
    }
}
