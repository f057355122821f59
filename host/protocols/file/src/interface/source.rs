//! The watched directory: what is in it, and what becomes of a file. Everything here blocks.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FileType, FlockOperation, Mode};

use super::config::{Order, SourceConfig};
use crate::directory::{self, Directory, Stamp};
use crate::temporary::{self, Temporary};

/// Files that are looked at in one pass: the first ones by the order.
pub(super) const PASS_FILES_MAX: usize = 10_000;
/// Files of one name that were given up.
const SAME_NAME_MAX: usize = 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: CString,
    pub(super) stamp: Stamp,
}

pub(super) enum Content {
    Whole(Bytes),
    TooLarge,
    /// Another file than the one that was found, or none any more.
    Changed,
}

pub(super) struct Source {
    config: SourceConfig,
    /// Its lock says that nobody else hands these files.
    directory: Directory,
}

impl Source {
    /// Whether the path of the configuration leads to another directory by now, or to none.
    pub(super) fn is_gone(&self) -> io::Result<bool> {
        match self.directory.is_at(&self.config.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            here => Ok(!here?),
        }
    }

    /// None while another interface or process hands the files of this directory.
    pub(super) fn open(config: SourceConfig) -> io::Result<Option<Self>> {
        let directory = Directory::open(&config.directory)?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { config, directory })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The files to be handed, in order. Hidden ones are not meant: they are often unfinished.
    pub(super) fn look(&self) -> io::Result<Vec<Found>> {
        let mut first = BTreeSet::new();
        for name in self.directory.names()? {
            let name = name?;
            let bytes = name.to_bytes();
            if bytes.starts_with(b".") || !self.config.pattern.fits(bytes) {
                continue;
            }
            // It may have gone meanwhile.
            let Some((FileType::RegularFile, stamp)) = self.directory.stat(&name)? else { continue };
            first.insert(Ordered { order: self.config.order, found: Found { name, stamp } });
            if first.len() > PASS_FILES_MAX {
                first.pop_last();
            }
        }
        Ok(first.into_iter().map(|ordered| ordered.found).collect())
    }

    pub(super) fn read(&self, found: &Found) -> io::Result<Content> {
        let (file, stamp) = match self.directory.file(&found.name) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Changed),
            Err(error) => return Err(error),
        };
        if stamp != found.stamp {
            return Ok(Content::Changed);
        }
        if !self.config.content {
            return Ok(Content::Whole(Bytes::new()));
        }
        Ok(directory::read(file, stamp, self.config.bytes_max)?.map_or(Content::TooLarge, Content::Whole))
    }

    /// Removes a file that was handled, or moves it to where such are kept. One that has been replaced meanwhile stays.
    pub(super) fn finish(&self, found: &Found) -> io::Result<()> {
        if !self.is_still(found)? {
            return Ok(());
        }
        match &self.config.done {
            None => self.directory.remove(&found.name),
            Some(done) => self.move_to(done, found).map(drop),
        }
    }

    /// Moves a file aside that is given up, and puts `why` beside it: `a.csv.error`. Why that note could not be written is
    /// told; the file is moved all the same.
    pub(super) fn give_up(&self, found: &Found, why: &str) -> io::Result<Option<io::Error>> {
        if !self.is_still(found)? {
            return Ok(None);
        }
        let failed = &self.config.failed;
        match self.move_to(failed, found)? {
            Some(name) => Ok(note(failed, &name, why).err()),
            None => Ok(None),
        }
    }

    fn is_still(&self, found: &Found) -> io::Result<bool> {
        Ok(self.directory.stat(&found.name)?.is_some_and(|(_, stamp)| stamp == found.stamp))
    }

    /// Under the same name, or the next one that is free: `a.csv`, `a.csv.1`, .. None if it changed meanwhile, and stays.
    fn move_to(&self, place: &Path, found: &Found) -> io::Result<Option<CString>> {
        std::fs::create_dir_all(place)?;
        let place = Arc::new(Directory::open(place)?);
        let moved = free_name(&place, &found.name, |name| self.directory.rename(&found.name, &place, name, false));
        let name = match moved {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => return self.copy_to(&place, found),
            moved => moved?,
        };
        place.sync()?;
        Ok(Some(name))
    }

    /// To another file system: the copy is complete, and on the disk, before it has its name; only then the file is removed.
    /// A crash in between leaves both, and the file is handed again.
    fn copy_to(&self, place: &Arc<Directory>, found: &Found) -> io::Result<Option<CString>> {
        let (file, stamp) = self.directory.file(&found.name)?;
        if stamp != found.stamp {
            return Ok(None);
        }
        temporary::sweep(place)?;
        let stat = rustix::fs::fstat(&file)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let mut copy = Temporary::write(place.clone(), &file, Some(mode))?;
        // Who may not give files away keeps what it copies.
        let _ = std::os::unix::fs::fchown(copy.file(), Some(stat.st_uid), Some(stat.st_gid));
        copy.file().set_modified(file.metadata()?.modified()?)?;
        if !self.is_still(found)? {
            return Ok(None);
        }
        let name = free_name(place, &found.name, |name| copy.try_place(place, name))?;
        place.sync()?;
        if let Err(error) = self.directory.remove(&found.name) {
            // It is tried again, and must not leave a copy each time.
            place.remove(&name)?;
            return Err(error);
        }
        self.directory.sync()?;
        Ok(Some(name))
    }
}

/// Tries `a.csv`, `a.csv.1`, .. until one is free.
fn free_name(place: &Directory, name: &CStr, mut take: impl FnMut(&CStr) -> io::Result<()>) -> io::Result<CString> {
    let bytes_max = place.name_bytes_max();
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

/// Writes why the file of that name was given up, beside it.
fn note(failed: &Path, name: &CStr, why: &str) -> io::Result<()> {
    let place = Directory::open(failed)?;
    let bytes_max = place.name_bytes_max();
    for number in 0..SAME_NAME_MAX {
        let suffix = if number == 0 { ".error".to_owned() } else { format!(".{number}.error") };
        let (note, is_cut) = with_suffix(name, &suffix, bytes_max)?;
        // A name that was cut may be that of another file's note.
        let Some(mut file) = place.create(&note, !is_cut)? else { continue };
        if is_cut {
            writeln!(file, "file: {}", name.to_string_lossy())?;
        }
        return writeln!(file, "{why}");
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many notes of that name are there already"))
}

/// The name with something behind it, and whether it had to be cut for that.
fn with_suffix(name: &CStr, suffix: &str, bytes_max: usize) -> io::Result<(CString, bool)> {
    let name = name.to_bytes();
    let mut room = name.len().min(bytes_max.saturating_sub(suffix.len()));
    let is_cut = room < name.len();
    // Not within a character.
    while is_cut && room > 0 && (name[room] & 0xc0) == 0x80 {
        room -= 1;
    }
    Ok((CString::new([&name[..room], suffix.as_bytes()].concat())?, is_cut))
}

#[derive(PartialEq, Eq)]
struct Ordered {
    order: Order,
    found: Found,
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_name = || self.found.name.cmp(&other.found.name);
        match self.order {
            Order::Name => by_name(),
            Order::Modified => self.found.stamp.modified_ns.cmp(&other.found.stamp.modified_ns).then_with(by_name),
        }
    }
}

impl PartialOrd for Ordered {
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
