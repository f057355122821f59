//! Watches a cage's key files and reads them again when they change, so that certificates are renewed without a restart.
//! Open connections stay as they are; new ones use the new certificate. Files that cannot be used change nothing, and are
//! logged once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::certificate::Validity;
use super::error::KeysError;
use super::identity::Identity;
use super::tls::{CageKeys, KeyFiles};
use wasmcage_core::telemetry::{error_chain, utc};

pub(crate) struct WatchedKeys {
    directory: PathBuf,
    identity: Identity,
    current: ArcSwapOption<CageKeys>,
    state: Mutex<WatchState>,
}

/// Result of the last check of the files.
#[derive(Default)]
struct WatchState {
    /// Hash of the files from which the current keys were read.
    used: Option<[u8; 32]>,
    /// The error of the files as they are now.
    unusable: Option<UnusableFiles>,
    /// The validity that was logged last.
    validity: LoggedValidity,
}

struct UnusableFiles {
    /// Hash of the files; none if they could not be read.
    hash: Option<[u8; 32]>,
    error: String,
    logged: bool,
}

/// The validity of a certificate, as far as changes of it are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LoggedValidity {
    #[default]
    Good,
    EndsSoon,
    Ended,
}

impl LoggedValidity {
    fn of(validity: Validity) -> Self {
        match validity {
            Validity::Good | Validity::NotYet { .. } => Self::Good,
            Validity::EndsSoon { .. } => Self::EndsSoon,
            Validity::Ended { .. } => Self::Ended,
        }
    }
}

impl WatchedKeys {
    /// Reads the keys. Missing files are no error: they are used once they exist. Blocks on files.
    ///
    /// # Errors
    /// The files exist and cannot be used.
    pub(crate) fn open(directory: &Path, identity: &Identity) -> Result<Self, KeysError> {
        let watched = Self {
            directory: directory.to_owned(),
            identity: identity.clone(),
            current: ArcSwapOption::empty(),
            state: Mutex::default(),
        };
        if let Some(contents) = KeyFiles::read(directory)? {
            watched.use_files(&contents, SystemTime::now())?;
        }
        Ok(watched)
    }

    /// Returns the keys for the next connection; none while the cage has no keys.
    pub(crate) fn current(&self) -> Option<Arc<CageKeys>> {
        self.current.load_full()
    }

    /// Returns the directory of the files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Checks the files at this interval, until the future is dropped.
    pub(crate) async fn watch(&self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let directory = self.directory.clone();
            match tokio::task::spawn_blocking(move || KeyFiles::read(&directory)).await {
                Ok(found) => self.check_files(found, SystemTime::now()),
                // The runtime ends.
                Err(_) => return,
            }
        }
    }

    fn check_files(&self, found: Result<Option<KeyFiles>, KeysError>, now: SystemTime) {
        let hash = found.as_ref().ok().and_then(Option::as_ref).map(KeyFiles::hash);
        let result = match found {
            Ok(Some(_)) if self.state.lock().used == hash => Ok(()),
            Ok(Some(contents)) => self.use_files(&contents, now).map(|keys| self.log_change(&keys)),
            Ok(None) if self.current.load().is_none() => Ok(()),
            Ok(None) => Err(KeysError::Missing { file: self.directory.clone() }),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.state.lock().unusable = None,
            Err(error) => self.record_unusable(hash, error_chain(&error)),
        }
        self.log_validity(now);
    }

    fn use_files(&self, contents: &KeyFiles, now: SystemTime) -> Result<Arc<CageKeys>, KeysError> {
        let keys = Arc::new(contents.keys(&self.identity, now)?);
        self.current.store(Some(Arc::clone(&keys)));
        for warning in keys.warnings(now) {
            tracing::warn!(cage = %self.identity.cage, file = %self.directory.display(), warning, "keys were taken");
        }
        let mut state = self.state.lock();
        state.used = Some(contents.hash());
        state.validity = LoggedValidity::of(keys.info().validity(now));
        Ok(keys)
    }

    fn log_change(&self, keys: &CageKeys) {
        tracing::info!(
            cage = %self.identity.cage,
            file = %self.directory.display(),
            fingerprint = keys.info().fingerprint,
            valid_until = utc(keys.info().not_after),
            "keys changed"
        );
    }

    /// Logs files that are unusable at the second check in a row: files are replaced one after the other, so that the
    /// first check may see half of a change.
    fn record_unusable(&self, hash: Option<[u8; 32]>, error: String) {
        let mut state = self.state.lock();
        match &mut state.unusable {
            // The error of the same files may have another text, which can contain the time.
            Some(unusable) if unusable.hash == hash && (hash.is_some() || unusable.error == error) => {
                if !std::mem::replace(&mut unusable.logged, true) {
                    let file = self.directory.display();
                    tracing::warn!(cage = %self.identity.cage, %file, error, "changed keys cannot be used");
                }
            }
            _ => state.unusable = Some(UnusableFiles { hash, error, logged: false }),
        }
    }

    /// Logs when the certificate in use will end soon or has expired.
    fn log_validity(&self, now: SystemTime) {
        let Some(keys) = self.current() else { return };
        let validity = LoggedValidity::of(keys.info().validity(now));
        if std::mem::replace(&mut self.state.lock().validity, validity) == validity {
            return;
        }
        let (cage, valid_until) = (&self.identity.cage, utc(keys.info().not_after));
        match validity {
            LoggedValidity::Good => {}
            LoggedValidity::EndsSoon => tracing::warn!(%cage, valid_until, "certificate ends soon"),
            LoggedValidity::Ended => tracing::error!(%cage, valid_until, "certificate has expired"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authority, CERTIFICATE_FILE, KEY_FILE};
    use super::*;

    fn unusable(keys: &WatchedKeys) -> Option<(String, bool)> {
        keys.state.lock().unusable.as_ref().map(|unusable| (unusable.error.clone(), unusable.logged))
    }

    #[test]
    fn keys_come_change_and_survive_bad_files() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), "default").unwrap();
        let files = directory.path().join("keys");
        let watched = WatchedKeys::open(&files, &Identity::new("default", "worker")).unwrap();
        let check = || watched.check_files(KeyFiles::read(&files), SystemTime::now());
        check();
        assert!(watched.current().is_none() && unusable(&watched).is_none());

        authority.issue("worker", 90).unwrap().write(&files, false).unwrap();
        check();
        let first = watched.current().unwrap();
        check();
        assert!(Arc::ptr_eq(&first, &watched.current().unwrap()), "nothing changed");

        let old = std::fs::read(files.join(KEY_FILE)).unwrap();
        authority.issue("worker", 90).unwrap().write(&files, true).unwrap();
        let new = std::fs::read(files.join(KEY_FILE)).unwrap();
        std::fs::write(files.join(KEY_FILE), old).unwrap();
        check();
        assert!(!unusable(&watched).unwrap().1, "half of a change is not logged yet");
        check();
        let (error, is_logged) = unusable(&watched).unwrap();
        assert!(is_logged && error.contains("does not belong to certificate"), "{error}");
        assert!(Arc::ptr_eq(&first, &watched.current().unwrap()));

        std::fs::write(files.join(KEY_FILE), new).unwrap();
        check();
        assert!(unusable(&watched).is_none());
        let second = watched.current().unwrap();
        assert_ne!(first.info().fingerprint, second.info().fingerprint);

        std::fs::remove_file(files.join(CERTIFICATE_FILE)).unwrap();
        check();
        assert!(unusable(&watched).unwrap().0.contains("cert.pem is missing"));
        std::fs::remove_dir_all(&files).unwrap();
        check();
        check();
        assert!(unusable(&watched).unwrap().1);
        assert!(Arc::ptr_eq(&second, &watched.current().unwrap()));
    }

    #[test]
    fn a_certificate_that_is_not_valid_yet_is_logged_once_and_used_when_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), "default").unwrap();
        let (files, identity) = (directory.path().join("keys"), Identity::new("default", "worker"));
        let watched = WatchedKeys::open(&files, &identity).unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        authority.sign(identity, now + hour, now + 99 * 24 * hour).unwrap().write(&files, false).unwrap();
        for (seconds, expected) in [(0, false), (5, true), (10, true)] {
            watched.check_files(KeyFiles::read(&files), now + Duration::from_secs(seconds));
            assert_eq!(unusable(&watched).unwrap().1, expected);
        }
        watched.check_files(KeyFiles::read(&files), now + 2 * hour);
        assert!(watched.current().is_some() && unusable(&watched).is_none());
    }

    #[test]
    fn the_end_of_a_certificate_is_logged_in_stages() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), "default").unwrap();
        let files = directory.path().join("keys");
        authority.issue("worker", 40).unwrap().write(&files, false).unwrap();
        let watched = WatchedKeys::open(&files, &Identity::new("default", "worker")).unwrap();
        for (days, expected) in [(0, LoggedValidity::Good), (15, LoggedValidity::EndsSoon), (41, LoggedValidity::Ended)]
        {
            let now = SystemTime::now() + Duration::from_secs(days * 24 * 3600);
            watched.check_files(KeyFiles::read(&files), now);
            assert_eq!(watched.state.lock().validity, expected);
        }
        assert!(watched.current().is_some(), "it stays in use, and peers refuse it");
    }
}
