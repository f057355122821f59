//! `logs/<cage>.pid`: whoever holds its lock is the cage's primary, and its content is that process's pid. The lock ends
//! with the process, however it ends; the file stays. `run` takes it; `stop` and `ps` look at it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wasmcage::telemetry::LOGS_DIRECTORY;

/// Somebody who only looks holds the lock for an instant, so one refusal is not believed.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("cage {cage} is running already{}", with_pid(.pid))]
    Held { cage: String, pid: Option<i32> },
    #[error("cannot write {file}")]
    Write {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn with_pid(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(", its primary's pid is {pid}")).unwrap_or_default()
}

/// Held for the primary's life.
#[derive(Debug)]
pub(crate) struct PidLock(#[expect(dead_code, reason = "open as long as the lock is held")] File);

pub(crate) fn pid_file(cage_directory: &Path, cage: &str) -> PathBuf {
    cage_directory.join(LOGS_DIRECTORY).join(format!("{cage}.pid"))
}

impl PidLock {
    /// Makes `logs` if it is missing, and writes this process's pid.
    ///
    /// # Errors
    /// Another primary has the cage, or its directory cannot be written.
    pub(crate) fn acquire(cage_directory: &Path, cage: &str) -> Result<Self, LockError> {
        let path = pid_file(cage_directory, cage);
        let write_error = |source| LockError::Write { file: path.clone(), source };
        fs::create_dir_all(cage_directory.join(LOGS_DIRECTORY)).map_err(write_error)?;
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(write_error)?;
        for attempt in 1..=ATTEMPTS {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => std::thread::sleep(ATTEMPT_PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { cage: cage.to_owned(), pid: read_pid(&file) });
                }
                Err(TryLockError::Error(error)) => return Err(write_error(error)),
            }
        }
        // Written over, then cut: a full disk still has the block that the last pid was in.
        let pid = format!("{}\n", std::process::id());
        file.write_all_at(pid.as_bytes(), 0).and_then(|()| file.set_len(pid.len() as u64)).map_err(write_error)?;
        Ok(Self(file))
    }
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
pub(crate) fn holder(cage_directory: &Path, cage: &str) -> io::Result<Holder> {
    let file = match File::open(pid_file(cage_directory, cage)) {
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
    use super::*;

    #[test]
    fn one_primary_per_cage_and_its_pid_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (path, me) = (directory.path(), std::process::id().cast_signed());
        assert_eq!(holder(path, "c").unwrap(), Holder::None);
        let lock = PidLock::acquire(path, "c").unwrap();
        assert_eq!(holder(path, "c").unwrap(), Holder::Pid(Some(me)));
        let text = PidLock::acquire(path, "c").unwrap_err().to_string();
        assert_eq!(text, format!("cage c is running already, its primary's pid is {me}"));
        drop(lock);
        assert_eq!(holder(path, "c").unwrap(), Holder::None);
        // A longer pid of old is overwritten whole.
        fs::write(pid_file(path, "c"), "99999999999\n").unwrap();
        let _lock = PidLock::acquire(path, "c").unwrap();
        assert_eq!(fs::read_to_string(pid_file(path, "c")).unwrap(), format!("{me}\n"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(LOGS_DIRECTORY), "").unwrap();
        let error = PidLock::acquire(directory.path(), "c").unwrap_err();
        assert!(error.to_string().contains("logs/c.pid"), "{error}");
    }
}
