//! Finds copies on this machine: each listens at a Unix socket `<runtime directory>/<flock>/<cage>.<copy>.sock`, so that
//! the directory is the list of copies. Both directories belong to the user and are closed to others, so that other
//! users' processes cannot connect. A killed process leaves its socket behind; the first copy to notice removes it.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{CopyAddress, CopyHint, DiscoveryEvent, FoundBy, Listener};
use crate::fabric::CopyId;
use wasmcage_config::is_name;
use wasmcage_core::task::Tasks;
use wasmcage_core::telemetry::error_chain;
use wasmcage_core::unix_socket;

/// Files read of a directory; further ones are ignored.
const ENTRIES_MAX: usize = 10_000;
/// Interval at which the directory is checked for changes. Inotify would be quicker, but a user may have few instances of
/// it (128 by default), and there may be many cages.
const SCAN_INTERVAL: Duration = Duration::from_millis(200);

/// The directory that lists the copies of a flock on this machine.
#[derive(Clone, Debug)]
pub struct Registry {
    directory: Arc<Path>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot use {directory}, where running cages find each other")]
    Io {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{directory}, where running cages find each other, is not a directory: remove it, or set WASMCAGE_RUNTIME_DIR"
    )]
    NotADirectory { directory: PathBuf },
    #[error(
        "{directory}, where running cages find each other, belongs to user {owner} and not to {user}, whose cages these are: \
         remove it, or set WASMCAGE_RUNTIME_DIR"
    )]
    Owner { directory: PathBuf, owner: u32, user: u32 },
    #[error(
        "{directory}, where running cages find each other, is open to other users (mode {mode:o}): `chmod 700 {directory}`"
    )]
    Open { directory: PathBuf, mode: u32 },
}

/// The name of a copy's socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registration {
    pub cage: String,
    pub copy: CopyId,
}

impl Registration {
    fn from_file_name(name: &str) -> Option<Self> {
        let (cage, copy) = name.strip_suffix(".sock")?.split_once('.')?;
        Some(Self { cage: cage.to_owned(), copy: CopyId::parse(copy)? }).filter(|_| is_name(cage))
    }

    fn file_name(&self) -> String {
        format!("{}.{}.sock", self.cage, self.copy)
    }
}

impl Registry {
    /// Makes the directories when they are missing.
    ///
    /// # Errors
    /// A directory cannot be made, belongs to another user, or is open to others.
    pub fn open(runtime_directory: &Path, flock: &str) -> Result<Self, RegistryError> {
        let directory = runtime_directory.join(flock);
        for directory in [runtime_directory, &directory] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            if let Err(source) = made
                && !matches!(source.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory)
            {
                return Err(RegistryError::Io { directory: directory.to_owned(), source });
            }
            Self::check_directory(directory)?;
        }
        Ok(Self { directory: directory.into() })
    }

    /// Checks that the directory exists, belongs to the user and is closed to others.
    ///
    /// # Errors
    /// The condition that does not hold.
    pub fn check_directory(directory: &Path) -> Result<(), RegistryError> {
        let found = fs::symlink_metadata(directory);
        let directory = directory.to_owned();
        let metadata = match found {
            Ok(metadata) => metadata,
            Err(source) => return Err(RegistryError::Io { directory, source }),
        };
        let (owner, user, mode) = (metadata.uid(), rustix::process::geteuid().as_raw(), metadata.mode() & 0o7777);
        if !metadata.is_dir() {
            Err(RegistryError::NotADirectory { directory })
        } else if owner != user {
            Err(RegistryError::Owner { directory, owner, user })
        } else if mode & 0o077 != 0 {
            Err(RegistryError::Open { directory, mode })
        } else {
            Ok(())
        }
    }

    /// Makes the directories again when somebody has removed them.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn restore(&self) -> Result<(), RegistryError> {
        if self.directory.is_dir() {
            return Ok(());
        }
        let parent = self.directory.parent().unwrap_or(&self.directory);
        let flock = self.directory.file_name().unwrap_or_default().to_string_lossy();
        Self::open(parent, &flock).map(|_| ())
    }

    /// Returns the path of a copy's socket.
    pub fn registration_path(&self, cage: &str, copy: CopyId) -> PathBuf {
        self.directory.join(Registration { cage: cage.to_owned(), copy }.file_name())
    }

    /// Lists all sockets, whether anybody listens or not.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scan(&self) -> io::Result<Vec<Registration>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)?.take(ENTRIES_MAX) {
            if let Some(registered) = entry?.file_name().to_str().and_then(Registration::from_file_name) {
                found.push(registered);
            }
        }
        Ok(found)
    }

    /// Removes a socket at which nobody listens. Returns whether it was removed. There is no race with its owner: names
    /// of sockets are never reused, and a socket appears only when somebody listens.
    pub fn remove_stale(&self, socket: &Path) -> bool {
        let name = socket.file_name().and_then(|name| name.to_str());
        let is_ours =
            socket.parent() == Some(&*self.directory) && name.and_then(Registration::from_file_name).is_some();
        is_ours && matches!(unix_socket::is_listening(socket), Ok(false)) && fs::remove_file(socket).is_ok()
    }

    /// Removes all sockets at which nobody listens. Returns how many.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn remove_all_stale(&self) -> io::Result<usize> {
        let sockets = self.scan()?.into_iter().map(|registered| self.directory.join(registered.file_name()));
        Ok(sockets.filter(|socket| self.remove_stale(socket)).count())
    }

    /// Removes dead sockets, then reports every copy that is there, comes or goes, except `own`, until the returned
    /// watch is dropped. Must be called on a tokio runtime.
    pub fn watch(&self, own: CopyId, listener: Listener, tasks: &Tasks) -> RegistryWatch {
        if let Err(error) = self.remove_all_stale() {
            tracing::debug!(file = %self.directory.display(), error = %error, "dead sockets could not be removed");
        }
        let scanner = DirectoryScanner {
            registry: self.clone(),
            own,
            listener,
            changed: None,
            settled: false,
            failed: false,
            known: HashSet::new(),
        };
        let scanner = Arc::new(Mutex::new(scanner));
        scanner.lock().scan();
        let scanning = {
            let scanner = scanner.clone();
            move || scan_repeatedly(scanner.clone())
        };
        let task = tokio::spawn(tasks.keep_running("rpc: cages of this machine", scanning));
        RegistryWatch { scanner, _task: AbortOnDropHandle::new(task) }
    }
}

async fn scan_repeatedly(scanner: Arc<Mutex<DirectoryScanner>>) {
    let mut ticks = tokio::time::interval(SCAN_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        scanner.lock().scan();
    }
}

/// Keeps the directory watched until it is dropped.
pub struct RegistryWatch {
    scanner: Arc<Mutex<DirectoryScanner>>,
    _task: AbortOnDropHandle<()>,
}

impl RegistryWatch {
    /// Scans the directory now, for a call of a cage without a known copy.
    pub fn scan_now(&self) {
        self.scanner.lock().scan();
    }
}

/// Compares the directory with the last scan, and reports the differences.
struct DirectoryScanner {
    registry: Registry,
    own: CopyId,
    listener: Listener,
    /// The directory's modification time before the last scan.
    changed: Option<SystemTime>,
    /// The directory was scanned again after its last change: a second change within one tick of the file system's clock
    /// does not show in the modification time.
    settled: bool,
    /// The last scan failed, which was logged.
    failed: bool,
    known: HashSet<Registration>,
}

impl DirectoryScanner {
    fn scan(&mut self) {
        match self.try_scan() {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !self.failed {
                    let directory = self.registry.directory.display();
                    tracing::warn!(file = %directory, error = %error_chain(&error), "the directory of this machine's cages could not be read");
                }
                (self.failed, self.changed) = (true, None);
            }
        }
    }

    fn try_scan(&mut self) -> io::Result<()> {
        let changed = Some(fs::metadata(&self.registry.directory)?.modified()?);
        if changed == self.changed && self.settled {
            return Ok(());
        }
        let found = self.registry.scan()?;
        self.settled = changed == self.changed;
        self.changed = changed;
        let mut known = HashSet::with_capacity(found.len());
        for registered in found.into_iter().filter(|registered| registered.copy != self.own) {
            if !self.known.remove(&registered) {
                let address = CopyAddress::Unix(self.registry.directory.join(registered.file_name()));
                let Registration { cage, copy } = registered.clone();
                let found_by = FoundBy::SameMachine;
                (self.listener)(DiscoveryEvent::Found(CopyHint { cage, copy, node: String::new(), address, found_by }));
            }
            known.insert(registered);
        }
        for Registration { cage, copy } in std::mem::replace(&mut self.known, known) {
            (self.listener)(DiscoveryEvent::Lost { cage, copy, found_by: FoundBy::SameMachine });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn names_of_registrations() {
        let check = |name: &str, expected: Option<(&str, u64)>| {
            let parsed = Registration::from_file_name(name);
            assert_eq!(
                parsed,
                expected.map(|(cage, copy)| Registration { cage: cage.into(), copy: CopyId(copy) }),
                "{name}"
            );
            if let Some(parsed) = parsed {
                assert_eq!(parsed.file_name(), name);
            }
        };
        check("worker.00000000000000ff.sock", Some(("worker", 255)));
        check("a-b_c.ffffffffffffffff.sock", Some(("a-b_c", u64::MAX)));
        for no in [
            "worker.ff.sock",
            "worker.00000000000000FF.sock",
            "worker.00000000000000ff",
            ".worker.00000000000000ff.sock",
            ".00000000000000ff.sock",
            "a.b.00000000000000ff.sock",
            "a b.00000000000000ff.sock",
            "sock",
            "",
            "\u{e9}.sock",
        ] {
            check(no, None);
        }
        check(&format!("{}.00000000000000ff.sock", "x".repeat(65)), None);
    }

    #[test]
    fn directories_that_others_may_enter_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let runtime = root.path().join("run/wasmcage");
        Registry::open(&runtime, "default").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&runtime), mode(&runtime.join("default"))), (0o700, 0o700));
        Registry::open(&runtime, "default").unwrap();
        let check = |flock: &str, expected: &str| {
            let error = Registry::open(&runtime, flock).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        fs::write(runtime.join("file"), "").unwrap();
        check("file", "not a directory");
        symlink(runtime.join("default"), runtime.join("link")).unwrap();
        check("link", "not a directory");
        symlink("nowhere", runtime.join("dangling")).unwrap();
        check("dangling", "not a directory");
        fs::set_permissions(runtime.join("default"), fs::Permissions::from_mode(0o710)).unwrap();
        check("default", "mode 710): `chmod 700");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        check("other", "mode 755");
    }

    #[test]
    fn as_superuser_a_directory_of_another_user_is_not_used() {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test cannot run here: only root can give files to another user. `cargo test -- --skip as_superuser` \
             leaves out such tests"
        );
        let root = tempfile::tempdir().unwrap();
        let runtime = root.path().join("run");
        Registry::open(&runtime, "default").unwrap();
        std::os::unix::fs::chown(&runtime, Some(12345), None).unwrap();
        let error = Registry::open(&runtime, "other").unwrap_err();
        assert!(error.to_string().contains("belongs to user 12345"), "{error}");
    }

    #[tokio::test]
    async fn only_dead_sockets_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let runtime = root.path().join("run");
        let registry = Registry::open(&runtime, "default").unwrap();
        let (alive, dead) = (registry.registration_path("a", CopyId(1)), registry.registration_path("a", CopyId(2)));
        let listener = unix_socket::bind(&alive).unwrap();
        drop(unix_socket::bind(&dead).unwrap());
        let elsewhere = root.path().join("a.0000000000000001.sock");
        drop(unix_socket::bind(&elsewhere).unwrap());
        let file = runtime.join("default/notes.txt");
        fs::write(&file, "").unwrap();
        assert!(!registry.remove_stale(&elsewhere) && !registry.remove_stale(&file));
        assert_eq!(registry.scan().unwrap().len(), 2);
        assert_eq!(registry.remove_all_stale().unwrap(), 1);
        assert!(alive.exists() && elsewhere.exists() && file.exists() && !dead.exists());
        drop(listener);
        assert!(registry.remove_stale(&alive) && !registry.remove_stale(&alive));
    }

    #[tokio::test]
    async fn copies_that_come_and_go_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::open(&root.path().join("run"), "default").unwrap();
        let register = |cage: &str, copy: u64| {
            let path = registry.registration_path(cage, CopyId(copy));
            unix_socket::NamedListener::bind(&path).unwrap()
        };
        let scanner = |cage: &str, copy: u64| {
            let address = CopyAddress::Unix(registry.registration_path(cage, CopyId(copy)));
            let (cage, copy, node) = (cage.to_owned(), CopyId(copy), String::new());
            DiscoveryEvent::Found(CopyHint { cage, copy, node, address, found_by: FoundBy::SameMachine })
        };
        let own = register("own", 1);
        let before = register("before", 2);
        let (tx, mut rx) = mpsc::channel(10);
        let watch = registry.watch(CopyId(1), Arc::new(move |event| tx.try_send(event).unwrap()), &Tasks::new("test"));
        assert_eq!(rx.try_recv().unwrap(), scanner("before", 2));
        let late = register("late", 3);
        watch.scan_now();
        assert_eq!(rx.try_recv().unwrap(), scanner("late", 3));
        // Found by the task, without a call of `scan_now`.
        drop(before);
        let gone = DiscoveryEvent::Lost { cage: "before".into(), copy: CopyId(2), found_by: FoundBy::SameMachine };
        assert_eq!(rx.recv().await.unwrap(), gone);
        let again = register("before", 4);
        assert_eq!(rx.recv().await.unwrap(), scanner("before", 4));
        drop(watch);
        drop((own, late, again));
        assert_eq!(rx.recv().await, None);
    }
}
