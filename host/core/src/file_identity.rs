//! Identifies the file at a path. While a file is open it may be moved away, removed or replaced, and what is written into the
//! open file is then not found at the path.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Identifies a file on this machine while it is open. The numbers of a file that is removed may be given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// # Errors
    /// The operating system's.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(file.metadata()?.into())
    }

    /// Returns the identity of the file at a path, following links; none if there is no file.
    ///
    /// # Errors
    /// The operating system's, except that there is no file.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the file at a path if it is still this one.
    pub(crate) fn remove_from(self, path: &Path) {
        if matches!(Self::at(path), Ok(Some(found)) if found == self) {
            // A file that is left behind does no harm.
            let _ = fs::remove_file(path);
        }
    }
}

impl From<Metadata> for FileIdentity {
    fn from(metadata: Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_another_file_has_taken_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("b"));
        let file = File::create(&path).unwrap();
        let identity = FileIdentity::of(&file).unwrap();
        assert_eq!(FileIdentity::at(&path).unwrap(), Some(identity));
        fs::rename(&path, directory.path().join("moved")).unwrap();
        assert_eq!(FileIdentity::at(&path).unwrap(), None);
        assert_eq!(FileIdentity::at(&path.join("below")).unwrap(), None);
        fs::write(&other, "").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(FileIdentity::at(&path).unwrap(), Some(identity));
        identity.remove_from(&path);
        assert!(path.exists(), "it belongs to somebody else");
        std::os::unix::fs::symlink("moved", directory.path().join("link")).unwrap();
        assert_eq!(FileIdentity::at(&directory.path().join("link")).unwrap(), Some(identity));
        identity.remove_from(&directory.path().join("moved"));
        assert!(!directory.path().join("moved").exists());
    }
}
