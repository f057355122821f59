//! Keeps the compiled files on disk. They are run as machine code, so the directory and every file in it must belong to this
//! user, and nobody else may write to them. A directory of another user is not used; the next one of the list is.
//!
//! An entry is a file named by the hash of the component and the engine's compatibility, and a second file with the hash of
//! the first. An entry that does not fit is removed and made anew under another inode. It is never overwritten, because it
//! may be mapped. When the directory is larger than its limit, the entries that were not used for the longest time are removed;
//! those that a process uses are locked (`flock`) and stay.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FlockOperation, MemfdFlags, Mode, OFlags, Timespec, Timestamps};

use super::component_file::ContentHash;

/// The default limit on the size of all compiled files of a directory together, in bytes.
pub const CACHE_BYTES_MAX: u64 = 2 << 30;
/// The age at which incomplete files of a killed process are removed.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// The largest number of names in a directory that are read to remove old entries.
const NAMES_MAX: usize = 200_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// The flags to open an entry. `NONBLOCK` is set because a pipe of that name would block.
const ENTRY: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The directories in which compiled files are kept.
pub struct Cache {
    /// The directories in the order of preference.
    directories: Vec<PathBuf>,
    bytes_max: u64,
    /// The reason why the preferred directory is not used, if it is not.
    problem: Mutex<Option<String>>,
    /// Is held while old entries are removed, so that only one thread does it.
    evicting: Mutex<()>,
}

/// The file that the compiler writes to, which has no name until it is complete.
pub struct Output {
    pub file: File,
    /// The directory in which to publish it, or `None` for a file in memory.
    directory: Option<OwnedFd>,
}

impl Output {
    /// # Errors
    /// Returns the system's error when it has no memory.
    pub fn in_memory() -> io::Result<Self> {
        let file = rustix::fs::memfd_create(c"wasmcage-compiled", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: file.into(), directory: None })
    }

    pub fn is_in_memory(&self) -> bool {
        self.directory.is_none()
    }
}

/// The names of the two files of an entry.
pub struct EntryName {
    code: String,
    sum: String,
}

impl EntryName {
    /// Makes the names from `key`, which names the component and the engine.
    pub fn new(key: &str) -> Self {
        Self { code: format!("{key}.cwasm"), sum: format!("{key}.sha256") }
    }
}

impl Cache {
    /// Makes a cache of the directories in the order of preference, with a limit on its size in bytes.
    pub fn new(directories: Vec<PathBuf>, bytes_max: u64) -> Self {
        Self { directories, bytes_max, problem: Mutex::default(), evicting: Mutex::default() }
    }

    /// Returns why compiled files are not kept in the preferred directory, or `None` if they are.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Opens the first directory that may be used, and notes why others before it may not.
    fn directory(&self) -> Option<OwnedFd> {
        let mut reasons = Vec::new();
        for path in &self.directories {
            match open_directory(path) {
                Ok(directory) => {
                    let problem = (!reasons.is_empty())
                        .then(|| format!("{}; they are kept in {}", reasons.join("; "), path.display()));
                    *self.problem.lock() = problem;
                    return Some(directory);
                }
                Err(error) => reasons.push(format!("compiled files cannot be kept in {}: {error}", path.display())),
            }
        }
        *self.problem.lock() = Some(format!("{}; components are compiled at each start", reasons.join("; ")));
        None
    }

    /// Makes a new file for machine code, on disk if possible, else in memory.
    ///
    /// # Errors
    /// Returns the system's error when neither is possible.
    pub fn output(&self) -> io::Result<Output> {
        if let Some(directory) = self.directory() {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            // Some file systems do not support files without a name.
            if let Ok(file) = rustix::fs::openat(&directory, c".", flags, PRIVATE) {
                return Ok(Output { file: file.into(), directory: Some(directory) });
            }
        }
        Output::in_memory()
    }

    /// Returns the machine code of an entry, if this user's host wrote it and it is unchanged. The entry is locked as long as
    /// the file is open. An entry that does not fit is removed.
    pub fn find(&self, name: &EntryName) -> Option<File> {
        let directory = self.directory()?;
        match read_entry(&directory, name) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.remove(name, &error);
                None
            }
        }
    }

    /// Removes an entry that cannot be used.
    pub fn remove(&self, name: &EntryName, reason: &dyn std::fmt::Display) {
        let Some(directory) = self.directory() else { return };
        tracing::warn!(file = name.code, error = %reason, "compiled file ignored and removed");
        remove_entry(&directory, name);
    }

    /// Gives the finished file its name, or copies a file in memory to the directory, if one may be used. If this fails, the
    /// next start has to compile again.
    ///
    /// # Errors
    /// Returns the system's error, such as a full disk.
    pub fn publish(&self, output: &Output, name: &EntryName, sum: &str) -> io::Result<()> {
        match &output.directory {
            Some(directory) => {
                remove_entry(directory, name);
                link(&output.file, directory, &name.code)?;
                write(directory, &name.sum, &mut sum.as_bytes())?;
            }
            None => {
                let Some(directory) = self.directory() else { return Ok(()) };
                remove_entry(&directory, name);
                let mut copied = output.file.try_clone()?;
                copied.rewind()?;
                write(&directory, &name.code, &mut copied)?;
                write(&directory, &name.sum, &mut sum.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Removes the entries that were not used for the longest time until the rest is within the limit, and files that killed
    /// processes left.
    ///
    /// # Errors
    /// Returns the system's error when the directory cannot be read.
    pub fn evict(&self) -> io::Result<()> {
        let Some(_evicting) = self.evicting.try_lock() else { return Ok(()) };
        let Some(directory) = self.directory() else { return Ok(()) };
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory)?.take(NAMES_MAX) {
            let name = entry?.file_name().to_owned();
            // A file that was removed meanwhile is skipped.
            let Ok(stat) = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let used = Duration::from_secs(stat.st_atime.max(stat.st_mtime).try_into().unwrap_or(0));
            let name = OsStr::from_bytes(name.to_bytes());
            let Some(name) = name.to_str() else { continue };
            match name.strip_suffix(".cwasm").filter(|key| !key.starts_with('.')) {
                Some(key) => entries.push((used, key.to_owned(), stat.st_size.try_into().unwrap_or(0_u64))),
                None if is_leftover(name) && age(used) > LEFTOVER_AGE => {
                    let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
                }
                None => {}
            }
        }
        let mut total: u64 = entries.iter().map(|(_, _, bytes)| bytes).sum();
        entries.sort();
        for (_, key, bytes) in entries {
            if total <= self.bytes_max {
                break;
            }
            let name = EntryName::new(&key);
            if is_unused(&directory, &name) {
                remove_entry(&directory, &name);
                total -= bytes;
            }
        }
        Ok(())
    }
}

/// Returns the user's own directory for compiled files, or `None` if neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
pub fn user_directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("wasmcage"))
}

/// Opens the directory, or makes it, and checks its owner. Write permission of others is taken away.
fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let directory = match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            make_directory(path)?;
            rustix::fs::open(path, DIRECTORY, Mode::empty())?
        }
        opened => opened?,
    };
    let stat = rustix::fs::fstat(&directory)?;
    check_owner(stat.st_uid)?;
    if stat.st_mode & WRITABLE_BY_OTHERS != 0 {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(stat.st_mode & 0o755))?;
    }
    Ok(directory)
}

/// Makes the directory, which only its owner may use. Root makes none in a directory of another user, because that user's own
/// cage could not use it afterwards.
fn make_directory(path: &Path) -> io::Result<()> {
    let mut existing = path.ancestors().skip(1).map(|above| match above.as_os_str().is_empty() {
        true => Path::new("."),
        false => above,
    });
    let above = existing.find_map(|above| above.metadata().ok());
    if rustix::process::geteuid().is_root() {
        above.map_or(Ok(()), |above| check_owner(above.uid()))?;
    }
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns an error unless the owner is this user, since nothing that another user wrote may be run.
fn check_owner(owner: u32) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if owner == own {
        return Ok(());
    }
    let text = format!("it belongs to user {owner}, and user {own} would run what is in it");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

fn open_entry(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let file = File::from(rustix::fs::openat(directory, name, ENTRY, Mode::empty())?);
    let metadata = file.metadata()?;
    wasmcage_core::regular_file::check(&metadata)?;
    check_owner(metadata.uid())?;
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may write to it"));
    }
    Ok(file)
}

fn read_entry(directory: &OwnedFd, name: &EntryName) -> io::Result<File> {
    let mut expected = String::new();
    open_entry(directory, &name.sum)?.take(65).read_to_string(&mut expected)?;
    let mut file = open_entry(directory, &name.code)?;
    // Without the lock another process may remove the entry, which does no harm: the file stays as long as it is open.
    let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
    let (hash, _) = ContentHash::of_reader(&mut file)?;
    if hash.to_string() != expected {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its content differs from what was written"));
    }
    // The entry that was used least recently is removed first. The time is set here, because not every system records accesses.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timespec { tv_sec: now.as_secs().try_into().unwrap_or(0), tv_nsec: now.subsec_nanos().into() };
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: omit });
    Ok(file)
}

/// Removes both files of an entry. The hash is removed first, because machine code without it is not used.
fn remove_entry(directory: &OwnedFd, name: &EntryName) {
    for name in [&name.sum, &name.code] {
        // A file that cannot be removed is replaced or removed later.
        let _ = rustix::fs::unlinkat(directory, name.as_str(), AtFlags::empty());
    }
}

fn is_unused(directory: &OwnedFd, name: &EntryName) -> bool {
    // An entry that cannot be opened is not in use.
    let Ok(file) = rustix::fs::openat(directory, name.code.as_str(), ENTRY, Mode::empty()) else { return true };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Returns whether a file may be one that a killed process left; the names of such files begin with a dot.
fn is_leftover(name: &str) -> bool {
    name.starts_with('.') && [".cwasm", ".wasm", ".sha256", ".new"].iter().any(|end| name.ends_with(end))
}

fn age(since_epoch: Duration) -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH + since_epoch).unwrap_or_default()
}

fn link(file: &File, directory: &OwnedFd, name: &str) -> io::Result<()> {
    Ok(rustix::fs::linkat(rustix::fs::CWD, descriptor_path(file), directory, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Returns a path to the open file itself, which stays valid when its names change.
pub fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Writes a file under a temporary name and renames it, so that it is never seen in part.
fn write(directory: &OwnedFd, name: &str, content: &mut impl io::Read) -> io::Result<()> {
    let temporary = format!(".{:016x}.new", fastrand::u64(..));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(directory, temporary.as_str(), flags, PRIVATE)?);
    let written = io::copy(content, &mut file).and_then(|_| file.flush());
    let done = written.and_then(|()| Ok(rustix::fs::renameat(directory, temporary.as_str(), directory, name)?));
    if done.is_err() {
        let _ = rustix::fs::unlinkat(directory, temporary.as_str(), AtFlags::empty());
    }
    done
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn cache(directory: &Path, bytes_max: u64) -> Cache {
        Cache::new(vec![directory.to_owned()], bytes_max)
    }

    fn put(cache: &Cache, key: &str, code: &[u8]) -> Output {
        let mut output = cache.output().unwrap();
        output.file.write_all(code).unwrap();
        cache.publish(&output, &EntryName::new(key), &ContentHash::of(code).to_string()).unwrap();
        output
    }

    fn content(mut file: File) -> Vec<u8> {
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn an_entry_is_found_until_anything_about_it_is_wrong() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("cache");
        let cache = cache(&directory, u64::MAX);
        let name = EntryName::new("key");
        assert!(cache.find(&name).is_none());
        put(&cache, "key", b"code");
        assert_eq!(content(cache.find(&name).unwrap()), b"code");
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        let code = directory.join(&name.code);
        let spoils: [(&str, &dyn Fn()); 4] = [
            ("others may write", &|| fs::set_permissions(&code, fs::Permissions::from_mode(0o622)).unwrap()),
            ("other content", &|| fs::write(&code, "edoc").unwrap()),
            ("a link", &|| {
                fs::rename(&code, scratch.path().join("elsewhere")).unwrap();
                symlink(scratch.path().join("elsewhere"), &code).unwrap();
            }),
            ("no sum", &|| fs::remove_file(directory.join(&name.sum)).unwrap()),
        ];
        for (what, spoil) in spoils {
            spoil();
            assert!(cache.find(&name).is_none(), "{what}");
            put(&cache, "key", b"code");
            assert_eq!(content(cache.find(&name).unwrap()), b"code", "after {what}");
        }
    }

    /// Fails the test unless root runs it. `tests/run` leaves such tests out by their names.
    fn require_superuser() {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test cannot run here: only root can give files to another user. `cargo test -- --skip as_superuser` \
             leaves out such tests"
        );
    }

    #[test]
    fn as_superuser_what_another_user_has_planted_is_never_used() {
        require_superuser();
        let scratch = tempfile::tempdir().unwrap();
        let (planted, private) = (scratch.path().join("planted"), scratch.path().join("private"));
        put(&cache(&planted, u64::MAX), "key", b"theirs");
        let mut cache = cache(&planted, u64::MAX);
        // One file belongs to another user, and the directory to this one.
        chown(planted.join("key.cwasm"), Some(65_534), None).unwrap();
        assert!(cache.find(&EntryName::new("key")).is_none());
        put(&cache, "key", b"ours");
        assert!(cache.find(&EntryName::new("key")).is_some());
        // The directory belongs to another user.
        chown(&planted, Some(65_534), None).unwrap();
        assert!(cache.find(&EntryName::new("key")).is_none());
        assert!(cache.output().unwrap().is_in_memory());
        assert!(cache.problem().unwrap().contains("belongs to user 65534"), "{:?}", cache.problem());
        cache.directories.push(private.clone());
        put(&cache, "key", b"ours");
        assert!(private.join("key.cwasm").exists() && cache.find(&EntryName::new("key")).is_some());
        assert!(cache.problem().unwrap().contains(&format!("kept in {}", private.display())));
    }

    #[test]
    fn as_superuser_no_directory_is_made_where_another_user_would_need_it() {
        require_superuser();
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("cages");
        fs::create_dir(&root).unwrap();
        chown(&root, Some(65_534), None).unwrap();
        assert!(cache(&root.join(".cache"), u64::MAX).output().unwrap().is_in_memory());
        assert!(!root.join(".cache").exists());
    }

    #[test]
    fn beyond_the_bound_the_least_recently_used_goes_and_what_is_in_use_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = cache(scratch.path(), 25);
        for (age, key) in [(3, "used"), (4, "old"), (2, "older"), (1, "new")] {
            put(&cache, key, b"ten bytes.");
            let time = SystemTime::now() - Duration::from_secs(1_000 * age);
            let file = File::options().write(true).open(scratch.path().join(format!("{key}.cwasm"))).unwrap();
            file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
        }
        let left = |key: &str| scratch.path().join(format!("{key}.cwasm")).exists();
        // The oldest entry stays, because it is open.
        let time = SystemTime::now() - Duration::from_secs(100_000);
        let open = cache.find(&EntryName::new("used")).unwrap();
        open.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
        fs::write(scratch.path().join(".left-by-a-kill.wasm"), "").unwrap();
        File::open(scratch.path().join(".left-by-a-kill.wasm")).unwrap().set_modified(time).unwrap_or(());
        cache.evict().unwrap();
        assert!(left("used") && left("new") && !left("old") && !left("older"));
        assert_eq!(content(open), b"ten bytes.");
    }

    #[test]
    fn what_a_killed_process_left_is_removed_when_it_is_old() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = cache(scratch.path(), u64::MAX);
        let (old, new) = (scratch.path().join(".0123-1-ab.wasm"), scratch.path().join(".0123-1-cd.wasm"));
        let time = SystemTime::now() - LEFTOVER_AGE * 2;
        File::create(&old).unwrap().set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
        fs::write(&new, "").unwrap();
        cache.evict().unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn a_file_in_memory_is_copied_when_there_is_a_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let cache = cache(scratch.path(), u64::MAX);
        let mut output = Output::in_memory().unwrap();
        output.file.write_all(b"code").unwrap();
        cache.publish(&output, &EntryName::new("key"), &ContentHash::of(b"code").to_string()).unwrap();
        assert_eq!(content(cache.find(&EntryName::new("key")).unwrap()), b"code");
    }
}
