//! Installs a built module in its cage: atomically, and only when it differs from the old one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum InstallOutcome {
    Replaced {
        bytes: u64,
    },
    /// The file had this content already, and was not changed.
    Same,
}

/// Installs the artifact as `file`.
///
/// # Errors
/// The operating system refuses; the old file is unchanged.
pub(super) fn install(artifact: &Path, file: &Path) -> io::Result<InstallOutcome> {
    let content = fs::read(artifact)?;
    if fs::read(file).is_ok_and(|old| old == content) {
        return Ok(InstallOutcome::Same);
    }
    let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // The cage's watcher ignores names that begin with a dot.
    let temporary = directory.join(format!(".{name}.{}-{:08x}", std::process::id(), fastrand::u32(..)));
    let written = write(&temporary, &content).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // If this fails, too, a hidden file is left that nobody reads.
        let _ = fs::remove_file(&temporary);
    }
    written.map(|()| InstallOutcome::Replaced { bytes: content.len() as u64 })
}

/// Writes and syncs the file before it is renamed, so that a power failure leaves the old module or the new one.
fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_only_when_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let (artifact, file) = (directory.path().join("built"), directory.path().join("cage").join("work.wasm"));
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::write(&artifact, "one").unwrap();
        assert_eq!(install(&artifact, &file).unwrap(), InstallOutcome::Replaced { bytes: 3 });
        let inode = fs::metadata(&file).unwrap().ino();
        assert_eq!(install(&artifact, &file).unwrap(), InstallOutcome::Same);
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
        fs::write(&artifact, "two").unwrap();
        assert_eq!(install(&artifact, &file).unwrap(), InstallOutcome::Replaced { bytes: 3 });
        assert_ne!(fs::metadata(&file).unwrap().ino(), inode);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        // With a directory at that path the rename fails, and the temporary file is removed.
        let blocked = directory.path().join("cage").join("blocked.wasm");
        fs::create_dir_all(blocked.join("inside")).unwrap();
        install(&artifact, &blocked).unwrap_err();
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 2);
    }
}
