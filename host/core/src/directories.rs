//! The directories of cages' files. All of them are below the root unless the environment says otherwise, which is needed
//! when the root cannot be written.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::private;

/// Name of the store's directory in a cage's directory.
const STATE_DIRECTORY: &str = "state";
/// Name of the logs' directory in a cage's directory.
const LOGS_DIRECTORY: &str = "logs";
/// Name of the directory for files that only a running cage needs. They are apart from `logs`, which people clean up, and from
/// `state`, which they back up and restore.
const RUN_DIRECTORY: &str = ".run";

/// Environment variable with the directory that contains a directory for each cage's store.
const STATE_VARIABLE: &str = "WASMCAGE_STATE_DIR";
/// Environment variable with the directory that contains a directory for each cage's logs.
const LOGS_VARIABLE: &str = "WASMCAGE_LOGS_DIR";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// The directory that contains the cages' directories.
    pub root: PathBuf,
    /// Contains `<cage>` for each cage's store, lock and sockets; none: they are in the cage's own directory.
    pub state: Option<PathBuf>,
    /// Contains `<cage>` for each cage's logs; none: they are in `logs` in the cage's directory.
    pub logs: Option<PathBuf>,
}

impl Directories {
    /// All files are below the root.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), state: None, logs: None }
    }

    /// Reads the process's environment.
    pub fn from_environment(root: impl Into<PathBuf>) -> Self {
        Self::from_variables(root, |name| std::env::var_os(name))
    }

    fn from_variables(root: impl Into<PathBuf>, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let directory = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self { root: root.into(), state: directory(STATE_VARIABLE), logs: directory(LOGS_VARIABLE) }
    }

    pub fn cage(&self, cage: &str) -> PathBuf {
        self.root.join(cage)
    }

    /// The directory of the cage's store.
    pub fn state(&self, cage: &str) -> PathBuf {
        self.of_cage(self.state.as_deref(), cage, STATE_DIRECTORY)
    }

    pub fn logs(&self, cage: &str) -> PathBuf {
        self.of_cage(self.logs.as_deref(), cage, LOGS_DIRECTORY)
    }

    /// The directory of the cage's lock and sockets.
    pub fn run(&self, cage: &str) -> PathBuf {
        self.state.as_ref().map_or_else(|| self.cage(cage), |directory| directory.join(cage)).join(RUN_DIRECTORY)
    }

    /// Creates the directory of the cage's lock and sockets. The cage's directory must exist.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn make_run(&self, cage: &str) -> io::Result<PathBuf> {
        let directory = self.run(cage);
        if self.state.is_some() {
            private::create_directory(&self.state(cage))?;
        }
        private::create_directory(&directory)?;
        Ok(directory)
    }

    fn of_cage(&self, elsewhere: Option<&Path>, cage: &str, name: &str) -> PathBuf {
        elsewhere.map_or_else(|| self.cage(cage).join(name), |directory| directory.join(cage))
    }

    /// Creates the directories outside the root, as far as they do not exist. A cage itself creates only those within its own.
    ///
    /// # Errors
    /// The directory that cannot be created, and why.
    pub fn make_parents(&self) -> Result<(), (PathBuf, io::Error)> {
        for directory in [&self.state, &self.logs].into_iter().flatten() {
            let missing: Vec<_> = directory.ancestors().take_while(|path| !is_there(path)).collect();
            for path in missing.into_iter().rev() {
                private::create_directory(path).map_err(|error| (path.to_owned(), error))?;
            }
        }
        Ok(())
    }
}

/// Returns whether a path exists. The empty path is the start of a relative one.
fn is_there(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_in_the_root_unless_a_variable_says_otherwise() {
        let inside = Directories::from_variables("/cages", |_| None);
        assert_eq!(inside, Directories::new("/cages"));
        assert_eq!(inside.state("a"), Path::new("/cages/a/state"));
        assert_eq!(inside.run("a"), Path::new("/cages/a/.run"));
        assert_eq!(inside.logs("a"), Path::new("/cages/a/logs"));
        let variable = |name: &str| match name {
            STATE_VARIABLE => Some("/var/state".into()),
            LOGS_VARIABLE => Some("/var/logs".into()),
            other => panic!("{other}"),
        };
        let outside = Directories::from_variables("/cages", variable);
        assert_eq!(outside.state("a"), Path::new("/var/state/a"));
        assert_eq!(outside.run("a"), Path::new("/var/state/a/.run"));
        assert_eq!(outside.logs("a"), Path::new("/var/logs/a"));
        assert_eq!(Directories::from_variables("/cages", |_| Some(OsString::new())), inside);
    }

    #[test]
    fn directories_outside_of_the_root_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let mut directories = Directories::new(directory.path().join("cages"));
        directories.make_parents().unwrap();
        directories.state = Some(directory.path().join("a/b/state"));
        directories.make_parents().unwrap();
        directories.make_parents().unwrap();
        assert!(directory.path().join("a/b/state").is_dir());
        assert!(directories.make_run("c").unwrap().is_dir());
        std::fs::write(directory.path().join("file"), "").unwrap();
        directories.logs = Some(directory.path().join("file/logs"));
        let (path, _) = directories.make_parents().unwrap_err();
        assert!(path.starts_with(directory.path().join("file")));
    }
}
