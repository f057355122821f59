//! A cage's keys as they are now: read again when their files change, so that certificates are renewed without a restart.
//! Connections that are open stay as they are; new ones use the new certificate. Files that cannot be used change nothing,
//! and are told of once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::certificate::Validity;
use super::error::KeysError;
use super::identity::Identity;
use super::tls::{Contents, Keys};
use wasmcage_core::telemetry::{error_chain, utc};

pub struct WatchedKeys {
    directory: PathBuf,
    identity: Identity,
    current: ArcSwapOption<Keys>,
    seen: Mutex<Seen>,
}

/// What the last look found.
#[derive(Default)]
struct Seen {
    /// Hash of the files that the current keys are from.
    used: Option<[u8; 32]>,
    /// What is wrong with the files now.
    refused: Option<Refused>,
    /// As it was told.
    validity: Stage,
}

struct Refused {
    /// Of the files' contents, where they could be read.
    hash: Option<[u8; 32]>,
    error: String,
    told: bool,
}

/// A certificate's life, as far as it is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Good,
    EndsSoon,
    Ended,
}

impl Stage {
    fn of(validity: Validity) -> Self {
        match validity {
            Validity::Good | Validity::NotYet { .. } => Self::Good,
            Validity::EndsSoon { .. } => Self::EndsSoon,
            Validity::Ended { .. } => Self::Ended,
        }
    }
}

impl WatchedKeys {
    /// Blocks on files. That there are none is no error: they are used once they have come.
    /// # Errors
    /// The files are there and cannot be used.
    pub fn open(directory: &Path, identity: &Identity) -> Result<Self, KeysError> {
        let watched = Self {
            directory: directory.to_owned(),
            identity: identity.clone(),
            current: ArcSwapOption::empty(),
            seen: Mutex::default(),
        };
        if let Some(contents) = Contents::read(directory)? {
            watched.take(&contents, SystemTime::now())?;
        }
        Ok(watched)
    }

    /// For the next connection; none as long as the cage has no keys.
    pub fn current(&self) -> Option<Arc<Keys>> {
        self.current.load_full()
    }

    /// The directory with the files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Looks at the files in this interval, until dropped.
    pub async fn watch(&self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let directory = self.directory.clone();
            match tokio::task::spawn_blocking(move || Contents::read(&directory)).await {
                Ok(found) => self.look(found, SystemTime::now()),
                // The runtime ends.
                Err(_) => return,
            }
        }
    }

    fn look(&self, found: Result<Option<Contents>, KeysError>, now: SystemTime) {
        let hash = found.as_ref().ok().and_then(Option::as_ref).map(Contents::hash);
        let result = match found {
            Ok(Some(_)) if self.seen.lock().used == hash => Ok(()),
            Ok(Some(contents)) => self.take(&contents, now).map(|keys| self.changed(&keys)),
            Ok(None) if self.current.load().is_none() => Ok(()),
            Ok(None) => Err(KeysError::Missing { file: self.directory.clone() }),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.seen.lock().refused = None,
            Err(error) => self.refused(hash, error_chain(&error)),
        }
        self.tell_validity(now);
    }

    fn take(&self, contents: &Contents, now: SystemTime) -> Result<Arc<Keys>, KeysError> {
        let keys = Arc::new(contents.keys(&self.identity, now)?);
        self.current.store(Some(Arc::clone(&keys)));
        for warning in keys.warnings(now) {
            tracing::warn!(cage = %self.identity.cage, file = %self.directory.display(), warning, "keys were taken");
        }
        let mut seen = self.seen.lock();
        seen.used = Some(contents.hash());
        seen.validity = Stage::of(keys.info().validity(now));
        Ok(keys)
    }

    fn changed(&self, keys: &Keys) {
        tracing::info!(
            cage = %self.identity.cage,
            file = %self.directory.display(),
            fingerprint = keys.info().fingerprint,
            valid_until = utc(keys.info().not_after),
            "keys changed"
        );
    }

    /// Files are replaced one after the other, so only what is wrong at a second look is told.
    fn refused(&self, hash: Option<[u8; 32]>, error: String) {
        let mut seen = self.seen.lock();
        match &mut seen.refused {
            // The error of the same files may change its words: it may hold the time.
            Some(refused) if refused.hash == hash && (hash.is_some() || refused.error == error) => {
                if !std::mem::replace(&mut refused.told, true) {
                    let file = self.directory.display();
                    tracing::warn!(cage = %self.identity.cage, %file, error, "changed keys cannot be used");
                }
            }
            _ => seen.refused = Some(Refused { hash, error, told: false }),
        }
    }

    /// A certificate that nobody renews ends while its cage is running.
    fn tell_validity(&self, now: SystemTime) {
        let Some(keys) = self.current() else { return };
        let stage = Stage::of(keys.info().validity(now));
        if std::mem::replace(&mut self.seen.lock().validity, stage) == stage {
            return;
        }
        let (cage, valid_until) = (&self.identity.cage, utc(keys.info().not_after));
        match stage {
            Stage::Good => {}
            Stage::EndsSoon => tracing::warn!(%cage, valid_until, "certificate ends soon"),
            Stage::Ended => tracing::error!(%cage, valid_until, "certificate has expired"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authority, CERTIFICATE_FILE, KEY_FILE};
    use super::*;

    fn told(keys: &WatchedKeys) -> Option<(String, bool)> {
        keys.seen.lock().refused.as_ref().map(|refused| (refused.error.clone(), refused.told))
    }

    #[test]
    fn keys_come_change_and_survive_bad_files() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), "default").unwrap();
        let files = directory.path().join("keys");
        let watched = WatchedKeys::open(&files, &Identity::new("default", "worker")).unwrap();
        let look = || watched.look(Contents::read(&files), SystemTime::now());
        look();
        assert!(watched.current().is_none() && told(&watched).is_none());

        authority.issue("worker", 90).unwrap().write(&files, false).unwrap();
        look();
        let first = watched.current().unwrap();
        look();
        assert!(Arc::ptr_eq(&first, &watched.current().unwrap()), "nothing changed");

        let old = std::fs::read(files.join(KEY_FILE)).unwrap();
        authority.issue("worker", 90).unwrap().write(&files, true).unwrap();
        let new = std::fs::read(files.join(KEY_FILE)).unwrap();
        std::fs::write(files.join(KEY_FILE), old).unwrap();
        look();
        assert!(!told(&watched).unwrap().1, "half of a change is not told of yet");
        look();
        let (error, is_told) = told(&watched).unwrap();
        assert!(is_told && error.contains("does not belong to certificate"), "{error}");
        assert!(Arc::ptr_eq(&first, &watched.current().unwrap()));

        std::fs::write(files.join(KEY_FILE), new).unwrap();
        look();
        assert!(told(&watched).is_none());
        let second = watched.current().unwrap();
        assert_ne!(first.info().fingerprint, second.info().fingerprint);

        std::fs::remove_file(files.join(CERTIFICATE_FILE)).unwrap();
        look();
        assert!(told(&watched).unwrap().0.contains("cert.pem is missing"));
        std::fs::remove_dir_all(&files).unwrap();
        look();
        look();
        assert!(told(&watched).unwrap().1);
        assert!(Arc::ptr_eq(&second, &watched.current().unwrap()));
    }

    #[test]
    fn a_certificate_that_is_not_valid_yet_is_told_once_and_taken_when_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), "default").unwrap();
        let (files, identity) = (directory.path().join("keys"), Identity::new("default", "worker"));
        let watched = WatchedKeys::open(&files, &identity).unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        authority.sign(identity, now + hour, now + 99 * 24 * hour).unwrap().write(&files, false).unwrap();
        for (seconds, expected) in [(0, false), (5, true), (10, true)] {
            watched.look(Contents::read(&files), now + Duration::from_secs(seconds));
            assert_eq!(told(&watched).unwrap().1, expected);
        }
        watched.look(Contents::read(&files), now + 2 * hour);
        assert!(watched.current().is_some() && told(&watched).is_none());
    }

    #[test]
    fn the_end_of_a_certificate_is_told_by_stages() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), "default").unwrap();
        let files = directory.path().join("keys");
        authority.issue("worker", 40).unwrap().write(&files, false).unwrap();
        let watched = WatchedKeys::open(&files, &Identity::new("default", "worker")).unwrap();
        for (days, expected) in [(0, Stage::Good), (15, Stage::EndsSoon), (41, Stage::Ended)] {
            let now = SystemTime::now() + Duration::from_secs(days * 24 * 3600);
            watched.look(Contents::read(&files), now);
            assert_eq!(watched.seen.lock().validity, expected);
        }
        assert!(watched.current().is_some(), "the others say what they think of it");
    }
}
