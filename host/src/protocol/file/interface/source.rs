//! The watched directory: what is in it, and what becomes of a file. Everything here blocks.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Write as _};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RenameFlags};

use super::config::{Order, SourceConfig};
use crate::protocol::file::directory::{self, Directory, Stamp};

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

    /// Moves a file aside that is given up, and puts `why` beside it: `a.csv.error`.
    pub(super) fn give_up(&self, found: &Found, why: &str) -> io::Result<()> {
        if !self.is_still(found)? {
            return Ok(());
        }
        let failed = &self.config.failed;
        let name = self.move_to(failed, found)?;
        let text = [name.to_bytes(), b".error"].concat();
        const NEW: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::TRUNC).union(OFlags::CLOEXEC);
        let place = Directory::open(failed)?;
        let file = rustix::fs::openat(&place, CString::new(text)?, NEW | OFlags::NOFOLLOW, Mode::from_raw_mode(0o666))?;
        writeln!(std::fs::File::from(file), "{why}")
    }

    fn is_still(&self, found: &Found) -> io::Result<bool> {
        Ok(self.directory.stat(&found.name)?.is_some_and(|(_, stamp)| stamp == found.stamp))
    }

    /// Under the same name, or the next one that is free: `a.csv`, `a.csv.1`, ..
    fn move_to(&self, place: &Path, found: &Found) -> io::Result<CString> {
        std::fs::create_dir_all(place)?;
        let place = Directory::open(place)?;
        for number in 0..SAME_NAME_MAX {
            let name = match number {
                0 => found.name.clone(),
                number => CString::new([found.name.to_bytes(), format!(".{number}").as_bytes()].concat())?,
            };
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&self.directory, found.name.as_c_str(), &place, name.as_c_str(), flags) {
                Ok(()) => {
                    place.sync()?;
                    return Ok(name);
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many files of that name are there already"))
    }
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
