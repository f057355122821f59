//! The directories that a guest was granted. It holds them open for as long as it lives, so that one that is replaced by
//! another, as when a link is swapped, would stay what it was: an instance whose directories have moved serves no further
//! request.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use wasmcage_config::FileGrant;

/// Which directories they were when they were opened: device and inode of each, none if it could not be looked at.
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
