//! Where the files of cages are. All of them are in the root unless the environment says otherwise: a root that cannot be
//! written needs other places for what a running cage writes.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::private;

/// In a cage's directory.
pub const STATE_DIRECTORY: &str = "state";
pub const LOGS_DIRECTORY: &str = "logs";
/// What only a running cage needs: apart from what people tidy, and from what they back up and put back.
const RUN_DIRECTORY: &str = ".run";

/// What each variable names has a directory per cage in it.
pub const STATE_VARIABLE: &str = "WASMCAGE_STATE_DIR";
pub const LOGS_VARIABLE: &str = "WASMCAGE_LOGS_DIR";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Directory of the cages.
    pub root: PathBuf,
    /// Holds `<cage>` for each cage's store, and for its lock and sockets; the cage's own directory has them if none.
    pub state: Option<PathBuf>,
    /// Holds `<cage>` for each cage's logs; `logs` in the cage's directory if none.
    pub logs: Option<PathBuf>,
}

impl Directories {
    /// Everything in the root.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), state: None, logs: None }
    }

    /// As the process's environment says.
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

    /// The cage's store.
    pub fn state(&self, cage: &str) -> PathBuf {
        self.of_cage(self.state.as_deref(), cage, STATE_DIRECTORY)
    }

    pub fn logs(&self, cage: &str) -> PathBuf {
        self.of_cage(self.logs.as_deref(), cage, LOGS_DIRECTORY)
    }

    /// The cage's lock and sockets.
    pub fn run(&self, cage: &str) -> PathBuf {
        self.state.as_ref().map_or_else(|| self.cage(cage), |directory| directory.join(cage)).join(RUN_DIRECTORY)
    }

    /// Makes the directory of the cage's lock and sockets, in a cage's directory that is there.
    ///
    /// # Errors
    /// It cannot be made.
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

    /// Makes what is missing of the directories that are not in the root: a cage makes only those within its own.
    ///
    /// # Errors
    /// The directory that cannot be made, and why.
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

/// The empty path is what a relative one begins at.
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
