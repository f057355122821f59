//! Detects that a directory that a guest was granted has been replaced, for example by a changed link. An instance keeps its
//! directories open as long as it lives, so it would go on with the old one; it therefore serves no further request.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use wasmcage_config::FileGrant;

/// The path, device and inode of each granted directory when it was opened. The latter are None if they could not be read.
pub(super) struct Granted(Vec<(PathBuf, Option<(u64, u64)>)>);

impl Granted {
    pub(super) fn of(grants: &[FileGrant]) -> Self {
        Self(grants.iter().map(|grant| (grant.host.clone(), identity(&grant.host))).collect())
    }

    pub(super) fn are_in_place(&self) -> bool {
        self.0.iter().all(|(host, known)| known.is_some() && *known == identity(host))
    }
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    let metadata = directory.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}
