//! The lock on `.run/primary.pid` in a cage's directory: the process that holds it is the cage's primary. The file has
//! that process's pid, for people: in another container the number means another process, so no command uses it. The
//! lock ends with the process; the file stays. `run` takes the lock and checks each second that the file still has its
//! name; other commands check whether the lock is held.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wasmcage_core::directories::Directories;
use wasmcage_core::file_identity::FileIdentity;
use wasmcage_core::private;

/// Attempts to take the lock: a process that only checks it holds it for an instant.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum PidLockError {
    #[error("cage {cage} is running already{}", with_pid(.pid))]
    Held { cage: String, pid: Option<i32> },
    #[error("cannot write {file}, by which a running cage is known{}", hint(.source))]
    Write {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn with_pid(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(", its primary's pid is {pid}")).unwrap_or_default()
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            ": WASMCAGE_STATE_DIR, WASMCAGE_LOGS_DIR and WASMCAGE_CACHE_DIR name directories outside of the root"
        }
        _ => "",
    }
}

/// The lock of a cage, held until it is dropped.
#[derive(Debug)]
pub(crate) struct PidLock {
    directories: Directories,
    cage: String,
    path: PathBuf,
    #[expect(dead_code, reason = "open as long as the lock is held")]
    file: File,
    identity: FileIdentity,
}

fn pid_file(run: &Path) -> PathBuf {
    run.join("primary.pid")
}

impl PidLock {
    /// Takes the lock and writes this process's pid. Makes the directory if it is missing.
    ///
    /// # Errors
    /// Another primary has the cage, or its directory cannot be written.
    pub(crate) fn acquire(directories: &Directories, cage: &str) -> Result<Self, PidLockError> {
        let path = pid_file(&directories.run(cage));
        let write_error = |source| PidLockError::Write { file: path.clone(), source };
        let (file, identity) = open_locked(directories, &path, cage)?;
        // Overwritten and then cut, which works on a full disk, too: the block of the last pid is still there.
        let pid = format!("{}\n", std::process::id());
        file.write_all_at(pid.as_bytes(), 0).and_then(|()| file.set_len(pid.len() as u64)).map_err(write_error)?;
        Ok(Self { directories: directories.clone(), cage: cage.to_owned(), path, file, identity })
    }

    /// Takes the lock again if the file is not at its path any more: it was removed, or its directory was moved or
    /// replaced. Returns whether that was so.
    ///
    /// # Errors
    /// Those of `acquire`. `Held` means that this primary has lost the cage to another one.
    pub(crate) fn restore(&mut self) -> Result<bool, PidLockError> {
        let write_error = |source| PidLockError::Write { file: self.path.clone(), source };
        if FileIdentity::at(&self.path).map_err(write_error)? == Some(self.identity) {
            return Ok(false);
        }
        *self = Self::acquire(&self.directories, &self.cage)?;
        Ok(true)
    }

    pub(crate) fn cage(&self) -> &str {
        &self.cage
    }
}

/// Opens and locks the file, and checks that it still has its name then.
fn open_locked(directories: &Directories, path: &Path, cage: &str) -> Result<(File, FileIdentity), PidLockError> {
    let write_error = |source| PidLockError::Write { file: path.to_owned(), source };
    for _ in 0..ATTEMPTS {
        directories.make_run(cage).map_err(write_error)?;
        let file = private::open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
        let file = file.map_err(write_error)?;
        match file.try_lock() {
            Ok(()) => {
                let identity = FileIdentity::of(&file).map_err(write_error)?;
                if FileIdentity::at(path).map_err(write_error)? == Some(identity) {
                    return Ok((file, identity));
                }
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(ATTEMPT_PAUSE),
            Err(TryLockError::Error(error)) => return Err(write_error(error)),
        }
    }
    let pid = File::open(path).ok().and_then(|file| read_pid(&file));
    Err(PidLockError::Held { cage: cage.to_owned(), pid })
}

/// The holder of a cage's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockHolder {
    None,
    /// A primary with this pid; none while it has not written the pid yet.
    Pid(Option<i32>),
}

/// Returns who holds the lock.
///
/// # Errors
/// The pid file exists and cannot be read.
pub(crate) fn lock_holder(run: &Path) -> io::Result<LockHolder> {
    let file = match File::open(pid_file(run)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LockHolder::None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(LockHolder::None),
        Err(TryLockError::WouldBlock) => Ok(LockHolder::Pid(read_pid(&file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read_pid(file: &File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// Makes a root with cage `c`; returns also the directory of its lock.
    fn root() -> (TempDir, Directories, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::new(root.path());
        fs::create_dir(directories.cage("c")).unwrap();
        let run = directories.run("c");
        (root, directories, run)
    }

    #[test]
    fn a_cage_has_one_primary_whose_pid_is_in_the_error() {
        let (_root, directories, run) = root();
        let me = std::process::id().cast_signed();
        assert_eq!(lock_holder(&run).unwrap(), LockHolder::None);
        let lock = PidLock::acquire(&directories, "c").unwrap();
        assert_eq!(lock_holder(&run).unwrap(), LockHolder::Pid(Some(me)));
        let text = PidLock::acquire(&directories, "c").unwrap_err().to_string();
        assert_eq!(text, format!("cage c is running already, its primary's pid is {me}"));
        drop(lock);
        assert_eq!(lock_holder(&run).unwrap(), LockHolder::None);
        // A longer old pid is overwritten completely.
        fs::write(pid_file(&run), "99999999999\n").unwrap();
        let _lock = PidLock::acquire(&directories, "c").unwrap();
        assert_eq!(fs::read_to_string(pid_file(&run)).unwrap(), format!("{me}\n"));
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_again() {
        let (_root, directories, run) = root();
        let mut lock = PidLock::acquire(&directories, "c").unwrap();
        assert!(!lock.restore().unwrap(), "it is there");
        for tidy in
            [|path: &Path| fs::remove_dir_all(path), |path: &Path| fs::rename(path, path.with_extension("away"))]
        {
            tidy(&run).unwrap();
            assert_eq!(lock_holder(&run).unwrap(), LockHolder::None);
            assert!(lock.restore().unwrap());
            assert!(matches!(lock_holder(&run).unwrap(), LockHolder::Pid(Some(_))));
            assert!(matches!(PidLock::acquire(&directories, "c"), Err(PidLockError::Held { .. })));
        }
    }

    #[test]
    fn a_cage_that_another_has_taken_meanwhile_is_lost() {
        let (_root, directories, run) = root();
        let mut lock = PidLock::acquire(&directories, "c").unwrap();
        fs::remove_dir_all(&run).unwrap();
        let _other = PidLock::acquire(&directories, "c").unwrap();
        assert!(matches!(lock.restore(), Err(PidLockError::Held { .. })));
    }

    #[test]
    fn a_removed_cage_does_not_come_back_by_its_lock() {
        let (_root, directories, _run) = root();
        let mut lock = PidLock::acquire(&directories, "c").unwrap();
        fs::remove_dir_all(directories.cage("c")).unwrap();
        assert!(matches!(lock.restore(), Err(PidLockError::Write { .. })));
        assert!(!directories.cage("c").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let (_root, directories, run) = root();
        fs::write(&run, "").unwrap();
        let error = PidLock::acquire(&directories, "c").unwrap_err();
        assert!(error.to_string().contains(".run/primary.pid"), "{error}");
    }
}
