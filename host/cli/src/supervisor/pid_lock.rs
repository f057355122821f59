//! `.run/primary.pid` in a cage's directory: whoever holds its lock is the cage's primary. Its content is that process's pid, for people: in another
//! container the number means another process, so that no command acts on it. The lock ends with the process, however it ends;
//! the file stays. `run` takes it, and looks each second whether the file still has its name; others look whether it is held.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wasmcage_core::directories::Directories;
use wasmcage_core::file_identity::FileIdentity;
use wasmcage_core::private;

/// Somebody who only looks holds the lock for an instant, so one refusal is not believed.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
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

/// Held for the primary's life.
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
    /// Makes the directory if it is missing, and writes this process's pid.
    ///
    /// # Errors
    /// Another primary has the cage, or its directory cannot be written.
    pub(crate) fn acquire(directories: &Directories, cage: &str) -> Result<Self, LockError> {
        let path = pid_file(&directories.run(cage));
        let write_error = |source| LockError::Write { file: path.clone(), source };
        let (file, identity) = locked(directories, &path, cage)?;
        // Written over, then cut: a full disk still has the block that the last pid was in.
        let pid = format!("{}\n", std::process::id());
        file.write_all_at(pid.as_bytes(), 0).and_then(|()| file.set_len(pid.len() as u64)).map_err(write_error)?;
        Ok(Self { directories: directories.clone(), cage: cage.to_owned(), path, file, identity })
    }

    /// Takes the lock anew when the file is not at its path any more: removed, or its directory moved or replaced. Returns
    /// whether it had to.
    ///
    /// # Errors
    /// As `acquire`. When another primary has the cage, this one has lost it.
    pub(crate) fn look_after(&mut self) -> Result<bool, LockError> {
        let write_error = |source| LockError::Write { file: self.path.clone(), source };
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

/// The file at the path, locked while it had the name.
fn locked(directories: &Directories, path: &Path, cage: &str) -> Result<(File, FileIdentity), LockError> {
    let write_error = |source| LockError::Write { file: path.to_owned(), source };
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
    Err(LockError::Held { cage: cage.to_owned(), pid })
}

/// Whether a cage has a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    None,
    /// None: it is just writing it.
    Pid(Option<i32>),
}

/// # Errors
/// A pid file that is there but cannot be read.
pub(crate) fn holder(run: &Path) -> io::Result<Holder> {
    let file = match File::open(pid_file(run)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::None),
        Err(TryLockError::WouldBlock) => Ok(Holder::Pid(read_pid(&file))),
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

    /// A root with cage `c`, and where its lock is.
    fn root() -> (TempDir, Directories, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::new(root.path());
        fs::create_dir(directories.cage("c")).unwrap();
        let run = directories.run("c");
        (root, directories, run)
    }

    #[test]
    fn one_primary_per_cage_and_its_pid_is_told() {
        let (_root, directories, run) = root();
        let me = std::process::id().cast_signed();
        assert_eq!(holder(&run).unwrap(), Holder::None);
        let lock = PidLock::acquire(&directories, "c").unwrap();
        assert_eq!(holder(&run).unwrap(), Holder::Pid(Some(me)));
        let text = PidLock::acquire(&directories, "c").unwrap_err().to_string();
        assert_eq!(text, format!("cage c is running already, its primary's pid is {me}"));
        drop(lock);
        assert_eq!(holder(&run).unwrap(), Holder::None);
        // A longer pid of old is overwritten whole.
        fs::write(pid_file(&run), "99999999999\n").unwrap();
        let _lock = PidLock::acquire(&directories, "c").unwrap();
        assert_eq!(fs::read_to_string(pid_file(&run)).unwrap(), format!("{me}\n"));
    }

    #[test]
    fn a_lock_that_was_tidied_away_is_taken_again() {
        let (_root, directories, run) = root();
        let mut lock = PidLock::acquire(&directories, "c").unwrap();
        assert!(!lock.look_after().unwrap(), "it is there");
        for tidy in
            [|path: &Path| fs::remove_dir_all(path), |path: &Path| fs::rename(path, path.with_extension("away"))]
        {
            tidy(&run).unwrap();
            assert_eq!(holder(&run).unwrap(), Holder::None);
            assert!(lock.look_after().unwrap());
            assert!(matches!(holder(&run).unwrap(), Holder::Pid(Some(_))));
            assert!(matches!(PidLock::acquire(&directories, "c"), Err(LockError::Held { .. })));
        }
    }

    #[test]
    fn a_cage_that_another_has_taken_meanwhile_is_lost() {
        let (_root, directories, run) = root();
        let mut lock = PidLock::acquire(&directories, "c").unwrap();
        fs::remove_dir_all(&run).unwrap();
        let _other = PidLock::acquire(&directories, "c").unwrap();
        assert!(matches!(lock.look_after(), Err(LockError::Held { .. })));
    }

    #[test]
    fn a_removed_cage_does_not_come_back_by_its_lock() {
        let (_root, directories, _run) = root();
        let mut lock = PidLock::acquire(&directories, "c").unwrap();
        fs::remove_dir_all(directories.cage("c")).unwrap();
        assert!(matches!(lock.look_after(), Err(LockError::Write { .. })));
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
