//! Which file is at a path. A name is not a file: what has the name may be moved away, removed or replaced while the file
//! is open, and whoever goes on with the open file then writes where nobody will look.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file on this machine, as long as somebody has it open: the numbers of a file that is gone may be given to another.
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

    /// The file at a path, links followed; none if there is none.
    ///
    /// # Errors
    /// The operating system's, other than that there is none.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the file at a path if it is this one. There may be another one meanwhile, which is left alone.
    pub fn remove_from(self, path: &Path) {
        if matches!(Self::at(path), Ok(Some(found)) if found == self) {
            // What is left behind harms nobody.
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
