//! The watched directory: finds its files, reads them, and removes or moves them afterwards. All functions here block.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FileType, FlockOperation, Mode};

use super::config::{FileInterfaceConfig, FileOrder};
use crate::directory::{self, DirectoryHandle, FileStamp};
use crate::temporary::{self, TemporaryFile};

/// The most files of one pass; if there are more, these are the first ones in the configured order.
pub(super) const PASS_FILES_MAX: usize = 10_000;
/// The most files of one name in the directory of failed or handled files.
const SAME_NAME_MAX: usize = 1_000;

/// A file, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WatchedFile {
    pub(super) name: CString,
    pub(super) stamp: FileStamp,
}

pub(super) enum FileContent {
    Whole(Bytes),
    TooLarge,
    /// The file was replaced, changed or removed since it was found.
    Changed,
}

pub(super) struct WatchedDirectory {
    config: FileInterfaceConfig,
    /// It is locked, so that no other interface or process takes files from it.
    directory: DirectoryHandle,
}

impl WatchedDirectory {
    /// Returns whether the configured path leads to another directory now, or to none.
    pub(super) fn is_gone(&self) -> io::Result<bool> {
        match self.directory.is_at(&self.config.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            here => Ok(!here?),
        }
    }

    /// Opens and locks the directory; none while another interface or process holds the lock.
    pub(super) fn open(config: FileInterfaceConfig) -> io::Result<Option<Self>> {
        let directory = DirectoryHandle::open(&config.directory)?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { config, directory })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the files in the configured order. Hidden files are ignored, since they are often unfinished.
    pub(super) fn scan(&self) -> io::Result<Vec<WatchedFile>> {
        let mut first = BTreeSet::new();
        for name in self.directory.names()? {
            let name = name?;
            let bytes = name.to_bytes();
            if bytes.starts_with(b".") || !self.config.pattern.matches(bytes) {
                continue;
            }
            // The file may have been removed meanwhile.
            let Some((FileType::RegularFile, stamp)) = self.directory.stat(&name)? else { continue };
            first.insert(OrderedFile { order: self.config.order, file: WatchedFile { name, stamp } });
            if first.len() > PASS_FILES_MAX {
                first.pop_last();
            }
        }
        Ok(first.into_iter().map(|ordered| ordered.file).collect())
    }

    pub(super) fn read(&self, file: &WatchedFile) -> io::Result<FileContent> {
        let (opened, stamp) = match self.directory.file(&file.name) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FileContent::Changed),
            Err(error) => return Err(error),
        };
        if stamp != file.stamp {
            return Ok(FileContent::Changed);
        }
        if !self.config.content {
            return Ok(FileContent::Whole(Bytes::new()));
        }
        Ok(directory::read(opened, stamp, self.config.bytes_max)?.map_or(FileContent::TooLarge, FileContent::Whole))
    }

    /// Removes a file that was handled, or moves it to the directory `done`. If it has been replaced meanwhile, the new
    /// one stays.
    pub(super) fn finish(&self, file: &WatchedFile) -> io::Result<()> {
        if !self.is_unchanged(file)? {
            return Ok(());
        }
        match &self.config.done {
            None => self.directory.remove(&file.name),
            Some(done) => self.move_to(done, file).map(drop),
        }
    }

    /// Moves a file that is given up to the directory `failed`, and writes `why` beside it: `a.csv.error`. If that
    /// cannot be written, the error is returned as a value; the file is moved all the same.
    pub(super) fn give_up(&self, file: &WatchedFile, why: &str) -> io::Result<Option<io::Error>> {
        if !self.is_unchanged(file)? {
            return Ok(None);
        }
        let failed = &self.config.failed;
        match self.move_to(failed, file)? {
            Some(name) => Ok(write_note(failed, &name, why).err()),
            None => Ok(None),
        }
    }

    fn is_unchanged(&self, file: &WatchedFile) -> io::Result<bool> {
        Ok(self.directory.stat(&file.name)?.is_some_and(|(_, stamp)| stamp == file.stamp))
    }

    /// Moves the file to another directory, under its name or the next free one: `a.csv`, `a.csv.1`, .. None if the
    /// file changed meanwhile and stays.
    fn move_to(&self, to: &Path, file: &WatchedFile) -> io::Result<Option<CString>> {
        std::fs::create_dir_all(to)?;
        let to = Arc::new(DirectoryHandle::open(to)?);
        let moved = with_free_name(&to, &file.name, |name| self.directory.rename(&file.name, &to, name, false));
        let name = match moved {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => return self.copy_to(&to, file),
            moved => moved?,
        };
        to.sync()?;
        Ok(Some(name))
    }

    /// Moves the file to a directory on another file system. The copy is complete and on the disk before it gets its
    /// name, and only then the file is removed. A crash in between leaves both, and the file is handled again.
    fn copy_to(&self, to: &Arc<DirectoryHandle>, file: &WatchedFile) -> io::Result<Option<CString>> {
        let (opened, stamp) = self.directory.file(&file.name)?;
        if stamp != file.stamp {
            return Ok(None);
        }
        temporary::sweep(to)?;
        let stat = rustix::fs::fstat(&opened)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let mut copy = TemporaryFile::write(to.clone(), &opened, Some(mode))?;
        // A process that may not change owners keeps the copy as its own.
        let _ = std::os::unix::fs::fchown(copy.file(), Some(stat.st_uid), Some(stat.st_gid));
        copy.file().set_modified(opened.metadata()?.modified()?)?;
        if !self.is_unchanged(file)? {
            return Ok(None);
        }
        let name = with_free_name(to, &file.name, |name| copy.try_place(to, name))?;
        to.sync()?;
        if let Err(error) = self.directory.remove(&file.name) {
            // This is tried again, and must not leave a copy each time.
            to.remove(&name)?;
            return Err(error);
        }
        self.directory.sync()?;
        Ok(Some(name))
    }
}

/// Calls `take` with `a.csv`, `a.csv.1`, .. until it finds a name free.
fn with_free_name(
    to: &DirectoryHandle,
    name: &CStr,
    mut take: impl FnMut(&CStr) -> io::Result<()>,
) -> io::Result<CString> {
    let bytes_max = to.name_bytes_max();
    for number in 0..SAME_NAME_MAX {
        let (name, _) = match number {
            0 => (name.to_owned(), false),
            number => with_suffix(name, &format!(".{number}"), bytes_max)?,
        };
        match take(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            taken => return taken.map(|()| name),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many files of that name are there already"))
}

/// Writes beside a file why it was given up.
fn write_note(failed: &Path, name: &CStr, why: &str) -> io::Result<()> {
    let directory = DirectoryHandle::open(failed)?;
    let bytes_max = directory.name_bytes_max();
    for number in 0..SAME_NAME_MAX {
        let suffix = if number == 0 { ".error".to_owned() } else { format!(".{number}.error") };
        let (note, is_cut) = with_suffix(name, &suffix, bytes_max)?;
        // A name that was cut may be that of another file's note.
        let Some(mut file) = directory.create(&note, !is_cut)? else { continue };
        if is_cut {
            writeln!(file, "file: {}", name.to_string_lossy())?;
        }
        return writeln!(file, "{why}");
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many notes of that name are there already"))
}

/// Appends a suffix to a name, and returns whether the name had to be cut for that.
fn with_suffix(name: &CStr, suffix: &str, bytes_max: usize) -> io::Result<(CString, bool)> {
    let name = name.to_bytes();
    let mut room = name.len().min(bytes_max.saturating_sub(suffix.len()));
    let is_cut = room < name.len();
    // A name is not cut within a character.
    while is_cut && room > 0 && (name[room] & 0xc0) == 0x80 {
        room -= 1;
    }
    Ok((CString::new([&name[..room], suffix.as_bytes()].concat())?, is_cut))
}

#[derive(PartialEq, Eq)]
struct OrderedFile {
    order: FileOrder,
    file: WatchedFile,
}

impl Ord for OrderedFile {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_name = || self.file.name.cmp(&other.file.name);
        match self.order {
            FileOrder::Name => by_name(),
            FileOrder::Modified => self.file.stamp.modified_ns.cmp(&other.file.stamp.modified_ns).then_with(by_name),
        }
    }
}

impl PartialOrd for OrderedFile {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_where_the_file_system_has_no_room_and_not_within_a_character() {
        let check = |name: &str, expected: &str, expected_cut: bool| {
            let (name, is_cut) = with_suffix(&CString::new(name).unwrap(), ".error", 12).unwrap();
            assert_eq!((name.to_str().unwrap(), is_cut), (expected, expected_cut));
        };
        check("a.csv", "a.csv.error", false);
        check("abcdef", "abcdef.error", false);
        check("abcdefg", "abcdef.error", true);
        check("abcde\u{e4}f", "abcde.error", true);
        check("", ".error", false);
    }
}
