//! A compiler that waits until a test lets it begin, or that fails as long as a test wants.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::guests;

/// A script that a host runs in place of its compiler, and that runs the compiler when the test allows it.
pub struct Gate {
    directory: TempDir,
}

impl Default for Gate {
    fn default() -> Self {
        Self::closed()
    }
}

impl Gate {
    /// A compiler that waits until `open`.
    ///
    /// # Panics
    /// When the file system does not do what is asked, as everything here.
    pub fn closed() -> Self {
        Self::new("while [ ! -e \"$here/open\" ]; do sleep 0.02; done")
    }

    /// A compiler that fails as on a full disk until `open`.
    pub fn full_disk() -> Self {
        Self::new("if [ ! -e \"$here/open\" ]; then echo 'no space left' >&2; exit 4; fi")
    }

    fn new(before: &str) -> Self {
        let gate = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        let here = gate.directory.path().display();
        let program = guests::program();
        let script =
            format!("#!/bin/sh\nhere='{here}'\n: > \"$here/asked\"\n{before}\nexec '{}' \"$@\"\n", program.display());
        fs::write(gate.program(), script).expect("a script");
        fs::set_permissions(gate.program(), fs::Permissions::from_mode(0o755)).expect("its mode");
        gate
    }

    pub fn program(&self) -> PathBuf {
        self.directory.path().join("compiler")
    }

    /// A directory for compiled files that no other test uses.
    pub fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// Says whether the compiler was ever started.
    pub fn was_asked(&self) -> bool {
        self.directory.path().join("asked").exists()
    }

    /// Lets all compilations begin.
    pub fn open(&self) {
        fs::write(self.directory.path().join("open"), "").expect("a file");
    }
}
